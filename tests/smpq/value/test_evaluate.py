from collections.abc import Sequence

import numpy as np
import pytest

from smpq.problem.policy import Policy
from smpq.value.evaluate import Evaluator
from smpq.value.journal import Journal
from tests.smpq.problems import W4A16, W8A8, Additive, policies, random_values, space_of


class Computed:
    """Works values out in batches, and keeps the batches."""

    def __init__(self, game, identity: str = "toy") -> None:
        self.game = game
        self.identity = identity
        self.together = 32
        self.folds = 1
        self.batches: list[list[str]] = []

    def __call__(self, policies: Sequence[Policy]):
        self.batches.append([policy.key() for policy in policies])
        for index in reversed(range(len(policies))):
            yield index, self.game(policies[index])


@pytest.fixture
def game():
    space = space_of(4)
    return space, Additive(random_values(space, np.random.default_rng(0)))


def test_a_policy_is_computed_once_and_the_values_keep_their_order(game):
    space, additive = game
    compute = Computed(additive)
    value = Evaluator(compute)
    policy = space.uniform(W8A8)
    assert value(policy) == value(Policy(dict(reversed(policy.formats.items()))))
    assert value.evaluations == 1
    asked = [space.uniform(W4A16), policy, space.uniform(W4A16)]
    assert value.many(asked) == [additive(each) for each in asked]
    assert value.evaluations == 2


def test_many_are_handed_over_in_batches(game):
    space, additive = game
    compute = Computed(additive)
    Evaluator(compute).many(list(policies(space)))
    assert sum(len(batch) for batch in compute.batches) == space.size()
    assert 2 <= len(compute.batches) <= space.size() // 8


def test_the_journal_prevents_repeats_after_a_kill(game, tmp_path):
    space, additive = game
    path = tmp_path / "journal.sqlite"

    class Killed(Computed):
        def __call__(self, policies):
            for number, result in enumerate(super().__call__(policies)):
                if number == 5:
                    raise KeyboardInterrupt
                yield result

    with pytest.raises(KeyboardInterrupt):
        Evaluator(Killed(additive), Journal(path), "weights").many(list(policies(space)))
    compute = Computed(additive)
    second = Evaluator(compute, Journal(path), "weights")
    values = second.many(list(policies(space)))
    assert values == [additive(policy) for policy in list(policies(space))]
    assert second.evaluations == space.size() - 5, "what was written before the kill is not computed again"
    third = Evaluator(compute, Journal(path), "weights")
    assert third.many(list(policies(space))) == values
    assert third.evaluations == 0


@pytest.mark.parametrize(("fingerprint", "identity"), [("other weights", "toy"), ("weights", "another value")])
def test_an_entry_made_under_other_settings_does_not_count(game, tmp_path, fingerprint, identity):
    space, additive = game
    journal = Journal(tmp_path / "journal.sqlite")
    Evaluator(Computed(additive), journal, "weights")(space.uniform(W8A8))
    other = Evaluator(Computed(additive, identity), journal, fingerprint)
    other(space.uniform(W8A8))
    assert other.evaluations == 1
    again = Evaluator(Computed(additive, identity), journal, fingerprint)
    again(space.uniform(W8A8))
    assert again.evaluations == 0
