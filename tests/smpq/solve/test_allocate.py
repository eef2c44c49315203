import ctypes
import dataclasses

import numpy as np
import pytest
from scipy import optimize

from calib.errors import UserError
from calib.formats.format import FP32
from smpq.problem.costs import CostModel
from smpq.problem.policy import Policy
from smpq.solve.allocate import Ceiling, Neighbourhood, Problem, allocate, nearest_feasible, solve_or_explain
from tests.smpq.problems import (
    W2A8,
    W4A16,
    W8A8,
    cost_by_hand,
    policies,
    random_cost,
    random_values,
    space_of,
    total,
    within,
)


def random_problem(seed: int) -> Problem:
    """Up to four ceilings, transitions, exclusions and a neighbourhood, in every mixture."""
    generator = np.random.default_rng(seed)
    formats = [(W8A8, W4A16, FP32), (W8A8, W4A16, W2A8, FP32), (W8A8, FP32)][seed % 3]
    space = space_of(int(generator.integers(2, 6)), formats)
    every = list(policies(space))
    values = random_values(space, generator, scale=10.0 ** generator.uniform(-9, 3))
    ceilings = []
    for _ in range(int(generator.integers(1, 5))):
        model = random_cost(space, generator, transitions=bool(generator.integers(2)))
        costs = [cost_by_hand(model, policy) for policy in every]
        ceilings.append(Ceiling(model, float(np.quantile(costs, generator.uniform(0.2, 0.9)))))
    excluded = [every[i] for i in generator.integers(0, len(every), size=int(generator.integers(0, 6)))]
    centre = every[int(generator.integers(len(every)))]
    near = Neighbourhood(centre, int(generator.integers(0, 4))) if generator.integers(2) else None
    return Problem(space, values, ceilings, excluded, near)


@pytest.mark.parametrize("seed", range(60))
def test_is_as_good_as_brute_force(seed):
    problem = random_problem(seed)
    allowed = [policy for policy in policies(problem.space) if within(problem, policy)]
    found = allocate(problem)
    if not allowed:
        assert found is None
        return
    assert found is not None
    assert within(
        dataclasses.replace(problem, ceilings=[Ceiling(c.model, c.limit * (1 + 1e-6)) for c in problem.ceilings]), found
    )
    best = max(total(problem.values, policy) for policy in allowed)
    largest = max(abs(value) for row in problem.values.values() for value in row.values())
    assert total(problem.values, found) >= best - 1e-6 * largest


def test_the_random_problems_hold_both_kinds():
    solved = [allocate(random_problem(seed)) is not None for seed in range(60)]
    assert 5 < sum(solved) < 60


@pytest.mark.parametrize("scale", [1e-9, 1e-5, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(5))
def test_the_answer_does_not_depend_on_the_unit_of_the_values(scale, seed):
    problem = dataclasses.replace(random_problem(3 * seed), near=None, excluded=())
    values = {name: {f: value * scale for f, value in row.items()} for name, row in random_values(
        problem.space, np.random.default_rng(seed)).items()}  # fmt: skip
    reference = {name: {f: value / scale for f, value in row.items()} for name, row in values.items()}
    scaled, plain = (allocate(dataclasses.replace(problem, values=v)) for v in (values, reference))
    assert (scaled and scaled.key()) == (plain and plain.key())


def test_values_of_1e_9_decide():
    space = space_of(3, (W8A8, W4A16))
    values = {name: {W8A8: 0.0, W4A16: -1e-9 * (index + 1)} for index, name in enumerate(space.formats)}
    model = CostModel("size", 0.0, {name: {W8A8: 2.0, W4A16: 1.0} for name in space.formats}, 6.0)
    found = allocate(Problem(space, values, [Ceiling(model, 5.0)]))
    assert found == Policy({"g0": W4A16, "g1": W8A8, "g2": W8A8})


def test_without_ceilings_every_group_gets_its_best():
    space = space_of(4)
    values = random_values(space, np.random.default_rng(0))
    assert allocate(Problem(space, values)) == Policy(
        {name: max(row, key=row.__getitem__) for name, row in values.items()}
    )


def test_nothing_to_gain_is_still_an_answer():
    space = space_of(2)
    values = {name: dict.fromkeys(row, 0.0) for name, row in space.formats.items()}
    assert allocate(Problem(space, values)) is not None


def test_a_group_of_one_format_and_an_exclusion_outside_the_space():
    space = dataclasses.replace(space_of(2), formats={"g0": (FP32,), "g1": (W8A8, FP32)})
    values = {"g0": {FP32: 0.0}, "g1": {W8A8: -1.0, FP32: 0.0}}
    foreign = Policy({"g0": W8A8, "g1": FP32})
    assert allocate(Problem(space, values, excluded=[foreign])) == Policy({"g0": FP32, "g1": FP32})


@pytest.mark.parametrize("seed", range(15))
def test_the_nearest_policy_has_the_smallest_excess(seed):
    problem = dataclasses.replace(random_problem(seed), near=None, excluded=())
    ceilings = [Ceiling(c.model, c.limit * 0.3) for c in problem.ceilings]

    def excess(policy: Policy) -> float:
        return max(cost_by_hand(c.model, policy) / c.limit - 1 for c in ceilings)

    found = nearest_feasible(dataclasses.replace(problem, ceilings=ceilings))
    assert max(excess(found), 0.0) == pytest.approx(max(min(map(excess, policies(problem.space))), 0.0), abs=1e-5)


def test_an_impossible_budget_names_the_nearest_point():
    space = space_of(2, (W8A8, W4A16))
    values = random_values(space, np.random.default_rng(0))
    model = CostModel("size", 10.0, {name: {W8A8: 8.0, W4A16: 4.0} for name in space.formats}, 74.0)
    assert solve_or_explain(Problem(space, values, [Ceiling(model, 18.0)])) == space.uniform(W4A16)
    with pytest.raises(UserError, match=r"size 18 \(0\.2432x of float\), wanted at most 15"):
        solve_or_explain(Problem(space, values, [Ceiling(model, 15.0)]))


@pytest.mark.parametrize("seed", range(10))
def test_a_byte_too_many_is_too_many(seed):
    generator = np.random.default_rng(seed)
    space = space_of(12, (W8A8, W4A16, W2A8))
    sizes = {name: float(generator.integers(10**6, 10**7)) for name in space.formats}
    model = CostModel("size", 0.0, {n: {W8A8: s, W4A16: s / 2, W2A8: s / 4} for n, s in sizes.items()}, 1.0)
    values = random_values(space, generator)
    found = allocate(Problem(space, values, [Ceiling(model, 0.5 * sum(sizes.values()))]))
    limit = model.total(found) - 1
    other = allocate(Problem(space, values, [Ceiling(model, limit)]))
    assert model.total(other) <= limit
    assert total(values, other) <= total(values, found)


def test_layers_that_are_alike_do_not_make_it_endless():
    generator = np.random.default_rng(0)
    space = space_of(30, (W8A8, W4A16))
    model = CostModel("size", 0.0, {name: {W8A8: 2e6, W4A16: 1e6} for name in space.formats}, 1.0)
    gains = {name: generator.uniform(1, 2) for name in space.formats}
    values = {name: {W8A8: gain, W4A16: 0.0} for name, gain in gains.items()}
    found = allocate(Problem(space, values, [Ceiling(model, 45e6 - 1)]))
    wide = {name for name, chosen in found.formats.items() if chosen == W8A8}
    assert wide == set(sorted(gains, key=gains.get)[-14:])


def test_excluding_everything_is_a_user_error():
    space = space_of(1, (W8A8, FP32))
    values = random_values(space, np.random.default_rng(0))
    with pytest.raises(UserError, match="excluded"):
        solve_or_explain(Problem(space, values, excluded=list(policies(space))))


def test_what_the_solver_prints_stays_off_standard_output(monkeypatch, capfd):
    solve = optimize.milp
    c_library = ctypes.CDLL(None)

    def talkative(*arguments, **keywords):
        c_library.puts(b"a debugging line")
        return solve(*arguments, **keywords)

    monkeypatch.setattr(optimize, "milp", talkative)
    print("before")
    space = space_of(2)
    assert allocate(Problem(space, random_values(space, np.random.default_rng(0)))) is not None
    print("after")
    c_library.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"
