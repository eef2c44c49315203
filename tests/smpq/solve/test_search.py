import itertools
from dataclasses import replace

import numpy as np
import pytest

from calib.errors import UserError
from calib.formats.format import FP32
from smpq.problem.costs import CostModel
from smpq.problem.policy import Policy
from smpq.solve.allocate import Ceiling, PairedValues
from smpq.solve.effort import EFFORTS, Effort, effort_from_name
from smpq.solve.search import EXHAUSTIVE, choose, confirm, feasible
from tests.smpq.one_by_one import OneByOne
from tests.smpq.problems import W2A8, W4A16, W8A8, Additive, policies, random_cost, random_values, space_of, total


class Rugged(Additive):
    """Additive scores mislead: every pair of groups has a value of its own."""

    def __init__(self, space, seed):
        generator = np.random.default_rng(seed)
        super().__init__(random_values(space, generator))
        self.pairs = {
            pair: {
                key: float(generator.normal())
                for key in itertools.product(space.formats[pair[0]], space.formats[pair[1]])
            }
            for pair in itertools.combinations(space.formats, 2)
        }

    def __call__(self, policy: Policy) -> float:
        return super().__call__(policy) + sum(row[policy[a], policy[b]] for (a, b), row in self.pairs.items())


def ceilings_of(space, seed: int) -> list[Ceiling]:
    """Two costs that have nothing to do with each other, and limits that at least one drawn policy meets."""
    generator = np.random.default_rng(seed)
    models = [random_cost(space, generator, name) for name in ("size", "latency")]
    drawn = Policy({name: row[int(generator.integers(len(row)))] for name, row in space.formats.items()})
    return [Ceiling(model, 1.02 * model.total(drawn)) for model in models]


def bits_of(space) -> CostModel:
    return CostModel(
        "avg_bits", 0.0, {name: {f: f.weight_bits for f in row} for name, row in space.formats.items()}, 1.0
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_small_space_is_searched_completely(seed):
    space = space_of(5)
    assert space.size() <= EXHAUSTIVE
    game, ceilings = Rugged(space, seed), ceilings_of(space, seed)
    excluded = [max(feasible(space, ceilings), key=game)]
    choice = choose(game, space, {"any": game.values}, ceilings, Effort(), excluded)
    allowed = [p for p in policies(space) if all(c.model.total(p) <= c.limit for c in ceilings) and p != excluded[0]]
    assert choice.value == max(map(game, allowed))
    assert choice.policy in allowed
    assert choice.path == (("all policies", choice.value),)


@pytest.mark.parametrize("seed", range(20))
def test_never_worse_than_the_starts_and_within_the_ceilings(seed):
    space = space_of(9, (W8A8, W4A16, W2A8, FP32))
    game, ceilings = Rugged(space, seed), ceilings_of(space, seed)
    starts = {"scores": game.values, "noise": random_values(space, np.random.default_rng(seed + 50))}
    choice = choose(game, space, starts, ceilings, Effort(rounds=8, evaluations=2000))
    assert all(c.model.total(choice.policy) <= c.limit * (1 + 1e-6) for c in ceilings)
    assert [name for name, _ in choice.path[:2]] == ["scores", "noise"]
    assert choice.value == game(choice.policy) >= max(value for _, value in choice.path)
    values = [value for _, value in choice.path]
    steps = [max(values[:2]), *values[2:]]
    assert steps == sorted(steps), "a round gave up something better"


def test_the_rounds_improve_on_scores_that_mislead():
    space = space_of(9, (W8A8, W4A16, W2A8, FP32))
    gained = []
    for seed in range(6):
        game, ceilings = Rugged(space, seed), ceilings_of(space, seed)
        without, with_rounds = (
            choose(game, space, {"noise": game.values}, ceilings, Effort(rounds=rounds, exchanges=rounds)).value
            for rounds in (0, 4)
        )
        gained.append(with_rounds - without)
    assert min(gained) >= 0
    assert sum(gain > 0 for gain in gained) >= 4


def test_what_the_float_policy_is_worth_does_not_matter():
    """A round that gains too little is one that gains little of what is lost, also where the value is an accuracy."""
    space = space_of(9, (W8A8, W4A16, W2A8, FP32))
    for seed in range(4):
        found = []
        for constant in (0.0, 1000.0):
            game = Rugged(space, seed)
            game.constant = constant
            noise = {"noise": random_values(space, np.random.default_rng(seed + 50))}
            choice = choose(game, space, noise, ceilings_of(space, seed), Effort(rounds=8, evaluations=2000))
            found.append((choice.policy, [name for name, _ in choice.path], len(set(game.asked))))
        assert found[0] == found[1]


def test_an_additive_value_is_solved_from_wrong_scores_in_one_round():
    space = space_of(8, (W8A8, W4A16, W2A8, FP32))
    values = random_values(space, np.random.default_rng(1))
    noise = random_values(space, np.random.default_rng(2))
    best = Policy({name: max(row, key=row.__getitem__) for name, row in values.items()})
    choice = choose(Additive(values), space, {"noise": noise}, (), Effort(rounds=20, evaluations=10_000))
    assert choice.value == pytest.approx(total(values, best))
    differences = [
        choice.marginals[name][f] - choice.marginals[name][best[name]] for name in values for f in values[name]
    ]
    assert max(differences) <= 0


def test_spends_no_more_evaluations_than_allowed():
    space = space_of(9, (W8A8, W4A16, W2A8, FP32))
    game = Rugged(space, 0)
    said: list[str] = []
    effort = Effort(rounds=10, evaluations=70)
    choice = choose(game, space, {"scores": game.values}, ceilings_of(space, 0), effort, advance=said.append)
    assert 1 <= len(said) <= 2  # a round takes 27 evaluations and a few candidates
    assert len(set(game.asked)) <= 70 + 1 + 10
    none = choose(game, space, {"scores": game.values}, ceilings_of(space, 0), Effort(evaluations=26))
    assert [name for name, _ in none.path] == ["scores"]
    assert choice.value >= none.value


def test_who_does_not_wait_gets_the_best_start():
    space = space_of(9, (W8A8, W4A16, W2A8, FP32))
    game, starts = Rugged(space, 0), {"noise": Rugged(space, 0).values}
    asked: list[int] = []

    def enough() -> bool:
        asked.append(len(game.asked))
        return True

    choice = choose(game, space, starts, ceilings_of(space, 0), Effort(), enough=enough)
    assert [name for name, _ in choice.path] == ["noise"]
    assert asked == [len(set(game.asked))] == [1]


def test_excluded_policies_are_not_chosen():
    space = space_of(7)
    values = random_values(space, np.random.default_rng(3))
    game = Additive(values)
    best = choose(game, space, {"scores": values}, (), Effort()).policy
    second = choose(game, space, {"scores": values}, (), Effort(), [best]).policy
    assert second != best
    assert game(second) == max(game(policy) for policy in policies(space) if policy != best)


@pytest.mark.parametrize("count", [3, 8], ids=["exhaustive", "rounds"])
def test_an_impossible_budget_is_a_user_error(count):
    space = space_of(count)
    game = Additive(random_values(space, np.random.default_rng(0)))
    with pytest.raises(UserError, match="no policy meets the budget"):
        choose(game, space, {"scores": game.values}, [Ceiling(bits_of(space), 4.0 * count - 1)], Effort())
    assert not game.asked, "a budget that nothing meets needs no evaluation"


def test_feasible_yields_exactly_what_the_ceilings_allow():
    space = space_of(3)
    ceiling = Ceiling(bits_of(space), 16.0)
    found = {policy.key() for policy in feasible(space, [ceiling], [space.uniform(W4A16)])}
    expected = {p.key() for p in policies(space) if sum(f.weight_bits for f in p.formats.values()) <= 16}
    assert found == expected - {space.uniform(W4A16).key()}
    assert len(found) == 3


@pytest.mark.parametrize("count", [4, 9], ids=["exhaustive", "rounds"])
def test_the_finalists_are_judged_again_on_other_samples(count):
    space = space_of(count, (W8A8, W4A16, W2A8, FP32))
    game, ceilings = Rugged(space, 0), ceilings_of(space, 0)
    choice = choose(game, space, {"scores": game.values}, ceilings, Effort())
    assert choice.policy in choice.finalists
    assert len(set(map(Policy.key, choice.finalists))) == len(choice.finalists) >= 2
    assert confirm(choice, game, game) == replace(
        choice, path=(*choice.path, ("best finalist on other samples", choice.value))
    )

    worst = min(choice.finalists, key=game)
    other = confirm(choice, game, OneByOne(lambda policy: -game(policy)))
    assert other.policy == worst
    assert other.value == game(worst), "the value is that on the samples of the search"


def test_efforts_go_from_fast_to_thorough():
    spent = [effort_from_name(name).scoring + effort_from_name(name).evaluations for name in EFFORTS]
    assert list(EFFORTS) == ["fast", "normal", "thorough"]
    assert spent == sorted(set(spent))
    with pytest.raises(UserError, match="fast, normal, thorough"):
        effort_from_name("quick")


@pytest.mark.parametrize("seed", range(3))
def test_scores_that_know_the_pairs_start_at_the_best_there_is(seed):
    space = space_of(6, (W8A8, W4A16, W2A8))
    game, ceilings = Rugged(space, seed), ceilings_of(replace(space, formats=with_float(space)), seed)
    pairs = {((a, f), (b, g)): value for (a, b), row in game.pairs.items() for (f, g), value in row.items()}
    starts = {"noise": game.values, "pairs": PairedValues(game.values, pairs)}
    choice = choose(game, space, starts, ceilings, Effort(rounds=0, exchanges=0))
    assert dict(choice.path)["pairs"] == pytest.approx(max(map(game, feasible(space, ceilings))))
    assert choice.value == pytest.approx(dict(choice.path)["pairs"])


def with_float(space):
    return {group: (*row, FP32) for group, row in space.formats.items()}
