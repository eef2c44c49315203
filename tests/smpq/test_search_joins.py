"""Spaces whose joins matter to the value and to the latency, against all policies."""

from itertools import combinations, product

import numpy as np
import pytest

from calib.errors import UserError
from calib.formats.format import FP32
from smpq.problem.costs import CostModel, JoinCost, Transition
from smpq.problem.policy import Group, Join, Policy, Space, canonical, every_policy, integer_regions
from smpq.solve.allocate import Ceiling, Problem, allocate, place_joins
from smpq.solve.effort import Effort
from smpq.solve.exchange import Exchanges
from smpq.solve.search import EXHAUSTIVE, choose, feasible, is_small
from tests.smpq.one_by_one import OneByOne
from tests.smpq.problems import W4A16, W8A8, random_values, total, unit

JOINS = (
    Join("first", ("a", "b"), ("c",)),
    Join("second", ("first", "c"), ("d",)),
    Join("third", ("second",), ("e", "a")),
)


def space_of_joins(names="abcde", formats=(W8A8, W4A16, FP32), joins=JOINS) -> Space:
    groups = tuple(Group(name, (unit(name),)) for name in names)
    return Space(groups, dict.fromkeys(names, formats), FP32, joins)


class Game:
    """Every format has a value, every join in float that makes a difference another one."""

    def __init__(self, space, seed):
        generator = np.random.default_rng(seed)
        self.space, self.values = space, random_values(space, generator)
        self.joins = {join.name: float(generator.normal()) for join in space.joins}
        self.joint = float(generator.normal())

    def __call__(self, policy):
        _, _, kept = integer_regions(policy, self.space.joins)
        return total(self.values, policy) + sum(self.joins[name] for name in kept) + self.joint * (len(kept) > 1)

    @property
    def function(self):
        return OneByOne(self)


def latency_of(space, seed) -> CostModel:
    random = np.random.default_rng(seed)
    parts = {name: {f: float(random.uniform(0.1, 1.0)) for f in row} for name, row in space.formats.items()}
    joins = tuple(JoinCost(join, *random.uniform(-0.5, 0.5, 2).tolist()) for join in space.joins)
    transitions = tuple(
        Transition(a, b, float(random.uniform(0, 0.3))) for a, b in (("a", "first"), ("first", "c"), ("second", "d"))
    )
    return CostModel("latency", 1.0, parts, 5.0, transitions, joins)


def by_hand(space):
    """Every choice of formats with every set of joins in float; those that mean the same are all there."""
    names = [group.name for group in space.groups]
    joins = [join.name for join in space.joins]
    for formats in product(*(space.formats[name] for name in names)):
        for count in range(len(joins) + 1):
            for kept in combinations(joins, count):
                yield Policy(dict(zip(names, formats, strict=True)), frozenset(kept))


def test_every_policy_is_there_once_and_in_its_canonical_form():
    space = space_of_joins(formats=(W8A8, FP32))
    found = [policy.key() for policy in every_policy(space)]
    assert len(found) == len(set(found)) > space.size()
    assert set(found) == {canonical(policy, space).key() for policy in by_hand(space)}


def test_joins_count_where_the_search_decides_whether_it_is_complete():
    assert is_small(space_of_joins("abcde", (W8A8, W4A16, FP32), ()))
    chain = tuple(Join(f"join{index}", (name, "a"), ("a",)) for index, name in enumerate("bcdefghij" * 20))
    assert not is_small(space_of_joins("abcdefghi", (W8A8, FP32), chain)), "512 choices of formats, and more policies"
    assert not is_small(space_of_joins("abcdefghij" * 40, (W8A8,), chain))
    assert EXHAUSTIVE == 512


@pytest.mark.parametrize("seed", range(25))
def test_a_complete_search_finds_the_best_of_all_with_joins_in_float(seed):
    space = space_of_joins(formats=(W8A8, FP32)) if seed % 2 else space_of_joins(joins=JOINS[:2])
    assert is_small(space)
    game, model = Game(space, seed), latency_of(space, seed)
    every = list(by_hand(space))
    costs = sorted(map(model.total, every))
    ceilings = [Ceiling(model, costs[len(costs) // (2 + seed % 5)] * (1 + 1e-6))]
    within = [policy for policy in every if model.total(policy) <= ceilings[0].limit]
    excluded = [max(within, key=game)]
    allowed = [policy for policy in within if canonical(policy, space).key() != canonical(excluded[0], space).key()]
    choice = choose(game.function, space, {"any": game.values}, ceilings, Effort(), excluded)
    assert choice.value == game(choice.policy) == max(map(game, allowed))
    assert choice.policy == canonical(choice.policy, space)
    assert model.total(choice.policy) <= ceilings[0].limit
    assert {p.key() for p in feasible(space, ceilings, excluded)} == {canonical(p, space).key() for p in allowed}


def test_the_joins_that_are_worth_more_in_float_are_kept_there_without_any_ceiling():
    space = space_of_joins(formats=(W8A8, FP32))
    game = Game(space, 0)
    game.values = {name: {W8A8: 1.0, FP32: 0.0} for name in space.formats}
    game.joins, game.joint = {"first": -1.0, "second": 2.0, "third": -1.0}, 0.0
    choice = choose(game.function, space, {"any": game.values}, (), Effort())
    assert choice.policy == Policy(space.uniform(W8A8).formats, frozenset({"second"}))


def test_only_a_policy_with_a_join_in_float_is_within_the_ceiling():
    space = space_of_joins("abc", (W8A8,), JOINS[:1])
    parts = {name: {W8A8: 0.2, FP32: 1.0} for name in "abc"}
    model = CostModel("latency", 0.0, parts, 3.0, (), (JoinCost(JOINS[0], integer=1.0, kept=0.0),))
    game = Game(space, 0)
    choice = choose(game.function, space, {"any": game.values}, [Ceiling(model, 0.7)], Effort())
    assert choice.policy == Policy(space.uniform(W8A8).formats, frozenset({"first"}))
    with pytest.raises(
        UserError, match=r"no policy meets the budget; the nearest one has latency 0\.6 .*wanted at most 0\.5"
    ):
        choose(game.function, space, {"any": game.values}, [Ceiling(model, 0.5)], Effort())
    with pytest.raises(UserError, match="no policy meets the budget; the nearest one has latency 1"):
        choose(game.function, space, {"any": game.values}, [Ceiling(model, 0.7)], Effort(), [choice.policy])


@pytest.mark.parametrize("seed", range(5))
def test_a_policy_is_excluded_however_its_joins_are_written(seed):
    space = space_of_joins(formats=(W8A8, FP32))
    model = latency_of(space, seed)
    integers = space.uniform(W8A8)
    same = [
        Policy(integers.formats, frozenset(kept))
        for kept in ({"first"}, {"first", "second"}, {"first", "second", "third"})
    ]
    assert len({canonical(policy, space).key() for policy in same}) == 1
    ceilings = [Ceiling(model, 100.0)]
    for written in same[1:]:
        assert same[0].key() not in {policy.key() for policy in feasible(space, ceilings, [written])}
        placed = place_joins(integers, Problem(space, {}, ceilings, [written]))
        assert canonical(placed, space).key() != same[0].key()
        change = Exchanges(space, ceilings, [written]).propose(
            Policy({**integers.formats, "e": FP32}, frozenset({"first"})),
            {name: {W8A8: 1.0, FP32: 0.0} for name in "abcde"},
            99,
            set(),
        )
        assert same[0].key() not in {canonical(policy, space).key() for policy in change}


def test_an_excluded_policy_with_a_join_in_float_leaves_the_one_without():
    space = space_of_joins(formats=(W8A8, FP32))
    values = {name: {W8A8: 1.0, FP32: 0.0} for name in space.formats}
    best = space.uniform(W8A8)
    assert allocate(Problem(space, values, (), [Policy(best.formats, frozenset({"first"}))])) == best
    assert allocate(Problem(space, values, (), [best])) != best
