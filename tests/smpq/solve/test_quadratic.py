"""Values of pairs: the same policy as brute force, and where the solver stops early a bound that holds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from calib.formats.format import FP32
from smpq.problem.policy import Policy
from smpq.solve.allocate import (
    Ceiling,
    Impossible,
    Neighbourhood,
    PairedValues,
    Problem,
    allocate,
    completed,
    pairs_of,
    worth,
)
from smpq.solve.quadratic import best_or_explain, search_pairs, solve_pairs
from tests.smpq.problems import W2A8, W4A16, W8A8, cost_by_hand, policies, random_cost, random_values, space_of

FORMATS = (W2A8, W4A16, W8A8)


def paired_problem(seed: int, count: int | None = None, formats=FORMATS, pull: float = 1.0) -> Problem:
    """Random values of moves and pairs, positive and negative, under one or two ceilings."""
    generator = np.random.default_rng(seed)
    space = space_of(count or int(generator.integers(3, 9)), formats)
    scale = 10.0 ** generator.uniform(-7, 2)
    values = random_values(space, generator, scale)
    moves = [(group, chosen) for group, row in space.formats.items() for chosen in row]
    pairs = {
        (one, other): float(generator.normal()) * scale * pull
        for one, other in itertools.combinations(moves, 2)
        if one[0] != other[0]
    }
    ceilings = []
    for _ in range(int(generator.integers(1, 3))):
        model = random_cost(replace_float(space), generator, transitions=False)
        low, high = (sum(pick(row.values()) for row in model.parts.values()) + model.fixed for pick in (min, max))
        ceilings.append(Ceiling(model, low + float(generator.uniform(0.2, 0.8)) * (high - low)))
    return Problem(space, PairedValues(values, pairs), ceilings)


def replace_float(space):
    """A space in which costs know the float format too, as they do of any."""
    return replace(space, formats={group: tuple(dict.fromkeys((*row, FP32))) for group, row in space.formats.items()})


def best_by_hand(problem: Problem) -> float | None:
    """The value of the best of all policies, as one sum over all of them."""
    groups = list(problem.space.formats)
    moves = [(group, chosen) for group in groups for chosen in problem.space.formats[group]]
    index = {move: number for number, move in enumerate(moves)}
    rows = np.array(
        list(itertools.product(*([index[group, f] for f in problem.space.formats[group]] for group in groups)))
    )
    linear = np.array([problem.values[group][chosen] for group, chosen in moves])
    matrix = np.zeros((len(moves), len(moves)))
    for (one, other), value in pairs_of(problem.values).items():
        matrix[index[one], index[other]] = matrix[index[other], index[one]] = value
    totals = linear[rows].sum(1) + matrix[rows[:, :, None], rows[:, None, :]].sum((1, 2)) / 2
    for ceiling in problem.ceilings:
        cost = np.array([ceiling.model.parts[group][chosen] for group, chosen in moves])
        totals[cost[rows].sum(1) + ceiling.model.fixed > ceiling.limit] = -np.inf
    best = float(totals.max())
    return None if best == -np.inf else best


@pytest.mark.parametrize("first", range(0, 200, 10))
def test_equals_brute_force(first):
    for seed in range(first, first + 10):
        problem = paired_problem(seed)
        best, found = best_by_hand(problem), solve_pairs(problem)
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            largest = max(abs(value) for row in problem.values.values() for value in row.values())
            assert found.value == pytest.approx(best, abs=1e-6 * largest)
            assert worth(problem.values, found.policy) == found.value
            assert all(cost_by_hand(c.model, found.policy) <= c.limit * (1 + 1e-6) for c in problem.ceilings)
            assert not found.gap
            assert "proven the best" in str(found)


@pytest.mark.parametrize("seed", range(8))
def test_without_cross_terms_it_is_the_linear_optimum(seed):
    problem = paired_problem(seed)
    nothing = dict.fromkeys(pairs_of(problem.values), 0.0)
    linear = allocate(replace(problem, values=dict(problem.values)))
    found = solve_pairs(replace(problem, values=PairedValues(problem.values, nothing)))
    assert (found.policy if found else None) == linear


@pytest.mark.parametrize("seed", range(20))
def test_a_search_that_is_cut_short_says_how_much_it_may_miss(seed):
    problem = paired_problem(seed, pull=3.0)
    best, found = best_by_hand(problem), solve_pairs(problem, seconds=0)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.value <= best + 1e-9 * abs(best)
    assert found.bound >= best - 1e-9 * abs(best)
    assert found.gap == 0 or "not proven the best: the solver reached its limit" in str(found)
    assert found.value >= worth(problem.values, allocate(replace(problem, values=dict(problem.values))))


def test_many_layers_with_strong_pairs_end_with_a_bound():
    """Scripts of CLADO's authors did not end on such problems, or gave wrong answers: ours gives one, and says so."""
    problem = paired_problem(3, count=14, formats=(*FORMATS, FP32), pull=1.0)
    found = solve_pairs(problem, seconds=0.05)
    assert found is not None
    assert worth(problem.values, found.policy) == found.value <= found.bound
    assert not found.gap or f"{found.gap:.2g}" in str(found)


@pytest.mark.parametrize("seed", range(10))
def test_a_local_search_ends_where_no_change_of_two_layers_gains(seed):
    problem = paired_problem(seed, count=4)
    found = search_pairs(problem)
    if found is None:
        return
    value = worth(problem.values, found)
    for policy in policies(problem.space):
        if sum(policy[group] != found[group] for group in found.formats) <= 2 and all(
            cost_by_hand(c.model, policy) <= c.limit for c in problem.ceilings
        ):
            assert worth(problem.values, policy) <= value + 1e-9


def test_near_the_policy_where_it_was_measured_or_everywhere_where_that_is_over_the_budget():
    space = space_of(3, (W2A8, W8A8))
    values = {group: {W2A8: 0.0, W8A8: 1.0} for group in space.formats}
    centre = space.uniform(W2A8)
    near = PairedValues(values, {}, Neighbourhood(centre, 1))
    model = random_cost(replace_float(space), np.random.default_rng(0))
    model = replace(model, fixed=0.0, parts={group: {W2A8: 2.0, W8A8: 1.0, FP32: 9.0} for group in space.formats})
    found = solve_pairs(Problem(space, near, [Ceiling(model, 6.0)]))
    assert found is not None
    assert (found.value, found.where) == (1.0, "near")
    assert "near the plan" in str(found)
    far = solve_pairs(Problem(space, near, [Ceiling(model, 3.5)]))
    assert far is not None
    assert "no plan where they were is within the budget" in str(far)
    assert (far.value, far.where) == (3.0, "beyond")


def test_no_policy_within_the_budget():
    problem = paired_problem(0)
    impossible = replace(problem, ceilings=[Ceiling(problem.ceilings[0].model, 1e-3)])
    assert solve_pairs(impossible) is None
    with pytest.raises(Impossible, match="no policy meets the budget"):
        best_or_explain(impossible)


def test_excluded_policies_are_not_found_again():
    problem = paired_problem(5, count=3)
    seen: list[Policy] = []
    for _ in range(4):
        found = solve_pairs(replace(problem, excluded=seen))
        if found is None:
            break
        assert found.policy not in seen
        seen.append(found.policy)
    values = [worth(problem.values, policy) for policy in seen]
    assert values == sorted(values, reverse=True)
    assert len(values) > 1


def test_moves_that_come_on_top_are_worth_nothing_and_pairs_stay():
    space = space_of(2, FORMATS)
    pair = (("g0", W2A8), ("g1", W2A8))
    values = PairedValues({"g0": {W2A8: 1.0}, "g1": {W2A8: 1.0}}, {pair: 5.0})
    assert worth(completed(values, space), space.uniform(W2A8)) == 7.0
    assert worth(completed(values, space), space.uniform(W8A8)) == 0.0
