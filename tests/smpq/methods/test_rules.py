"""The methods that decide by a rule of their own, and what their scores say, on spaces small enough to look through."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from calib.formats.format import FP32, Format
from smpq.methods import METHODS, linear_objective
from smpq.problem.costs import CostModel
from smpq.solve.allocate import Ceiling, Impossible
from smpq.solve.search import feasible
from tests.smpq.one_by_one import OneByOne
from tests.smpq.problems import space_of

W2, W4, W8 = (Format.from_text(text) for text in ("w2a8", "w4a8", "w8a8"))
FORMATS = (W2, W4, W8, FP32)


class Watcher:
    def enough(self):
        return False

    def step(self, _):
        return nullcontext()


def problem(space, value=None, seed=0):
    found = SimpleNamespace(space=space, seed=seed, value_name="kl", progress=Watcher(), task=None, batches=())
    found.evaluator = OneByOne(value) if value is not None else None
    return found


def bits_of(space):
    """The weight bits of all layers together."""
    parts = {
        group.name: {chosen: group.parameters * chosen.weight_bits for chosen in FORMATS} for group in space.groups
    }
    return CostModel("bits", 0.0, parts, sum(row[FP32] for row in parts.values()))


def within(space, bits):
    """A ceiling on the bits of all weights together, as a mean."""
    return [Ceiling(bits_of(space), bits * sum(group.parameters for group in space.groups))]


def policy_of(name, space, bits, value=None, seed=0):
    method = METHODS[name]
    return method.policy(space, method.score(problem(space, value, seed)).linear, within(space, bits))


def total_bits(policy):
    return sum(chosen.weight_bits for chosen in policy.formats.values())


@pytest.mark.parametrize(("bits", "expected"), [(32, FP32), (9, W8), (8, W8), (7.9, W4), (3, W2)])
def test_uniform_takes_the_best_that_fits(bits, expected):
    space = space_of(3, FORMATS)
    assert policy_of("uniform", space, bits, total_bits) == space.uniform(expected)


def test_uniform_goes_by_the_value_and_not_by_the_bits():
    space = space_of(3, FORMATS)
    assert policy_of("uniform", space, 9, lambda policy: -total_bits(policy)) == space.uniform(W2)
    scores = METHODS["uniform"].score(problem(space, total_bits)).linear
    assert {group: row[W4].value for group, row in scores.entries.items()} == dict.fromkeys(
        space.formats, pytest.approx(4 - 32)
    )


def test_uniform_counts_what_layers_without_the_format_have_once():
    space = space_of(2, FORMATS)
    space = replace(space, formats={"g0": (W8,), "g1": (W8, W4)})
    values = {(W8, W8): -1.0, (W8, W4): -0.8}
    found = policy_of("uniform", space, 9, lambda policy: values.get(tuple(policy.formats.values()), 0.0))
    assert found.formats == {"g0": W8, "g1": W4}


def test_uniform_that_does_not_fit_says_what_comes_closest():
    with pytest.raises(
        Impossible,
        match="no policy with one format for all layers meets the budget; the nearest one has bits 384, "
        "wanted at most 288",
    ):
        policy_of("uniform", space_of(3, FORMATS), 1.5, total_bits)


def test_largest_first_takes_bits_from_the_largest_until_it_fits():
    space = space_of(4, FORMATS, parameters=(10, 40, 30, 20))
    names = [group.name for group in space.groups]

    def formats(bits):
        return [policy_of("largest-first", space, bits)[name] for name in names]

    assert formats(32) == [FP32] * 4
    assert formats(31) == [FP32, W8, FP32, FP32], "the last one that is changed keeps the most that fits"
    assert formats(32 - 0.4 * 30) == [FP32, W2, FP32, FP32]
    assert formats(32 - 0.4 * 30 - 0.3 * 24 - 0.01) == [FP32, W2, W4, FP32]
    assert formats(2) == [W2] * 4
    with pytest.raises(Impossible, match="no policy with the fewest bits in all layers"):
        formats(1.9)


def test_random_is_by_seed_and_uses_the_budget():
    space = space_of(6, FORMATS, parameters=(10, 40, 30, 20, 5, 25))
    found = [policy_of("random", space, 5, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert found[0] == found[1]
    assert len({policy.key() for policy in found}) > 2
    allowed = list(feasible(space, within(space, 5)))
    cost = bits_of(space).total
    for policy in found:
        assert policy in allowed
        larger = [other for other in allowed if all(other[g] >= policy[g] for g in policy.formats) and other != policy]
        assert not larger, "no layer could have more bits within the budget"
        assert cost(policy) <= 5 * 130


def test_samples_become_means_with_standard_errors():
    space = space_of(2, FORMATS)
    name = space.groups[0].name
    scores = linear_objective(
        problem(space), {(name, W4): (1.0, 2.0, 6.0)}, estimator="e", value_name="v", random=True
    ).linear
    cell = scores.entries[name][W4]
    assert (cell.value, cell.samples, cell.marginals) == (3.0, 3, (1.0, 2.0, 6.0))
    assert cell.standard_error == pytest.approx((7 / 3) ** 0.5)
    assert scores.permutations == 3
    assert scores.starts() == {"e": scores.values()}, "there are no contexts to tell from each other"
