from dataclasses import replace

import numpy as np
import pytest

from smpq.problem.policy import Policy, integer_regions
from smpq.scoring.estimators import Stopping, estimator_from_name
from smpq.scoring.game import PolicyGame
from tests.smpq.one_by_one import OneByOne
from tests.smpq.problems import FP32, W2A8, W4A16, W8A8, Additive, random_values, space_of
from tests.smpq.test_search_joins import Game, space_of_joins

SPACE = space_of(6, (W8A8, W4A16, W2A8, FP32))
START = SPACE.uniform(FP32)
END = Policy({**SPACE.uniform(W4A16).formats, "g1": FP32, "g4": W2A8})


@pytest.fixture
def game() -> Additive:
    return Additive(random_values(SPACE, np.random.default_rng(0)), constant=3.0)


def test_a_coalition_has_moved_and_the_others_have_not(game):
    between = PolicyGame(game, SPACE, START, END)
    assert between.players == ("g0", "g2", "g3", "g4", "g5"), "a group that stays as it is plays no part"
    rows = np.array([[False] * 5, [True] * 5, [True, False, False, True, False]])
    mixed = START.with_format("g0", W4A16).with_format("g4", W2A8)
    np.testing.assert_allclose(between(rows), [0.0, game(END) - game(START), game(mixed) - game(START)])


def test_contributions_of_an_additive_value_are_its_parts(game):
    between = PolicyGame(game, SPACE, START, END)
    estimate = estimator_from_name("exact").estimate(between, len(between.players), Stopping(32), 0)
    expected = [game.values[name][END[name]] - game.values[name][FP32] for name in between.players]
    np.testing.assert_allclose(estimate.values, expected, atol=1e-12)


@pytest.mark.parametrize("kept", [{"first"}, {"second"}, {"third"}])
def test_the_contributions_of_a_policy_with_joins_in_float_sum_to_what_it_loses(kept):
    space = space_of_joins(formats=(W8A8, FP32))
    value = Game(space, 3)
    end = Policy(space.uniform(W8A8).formats, frozenset(kept))
    assert value(end) != value(space.uniform(W8A8))
    asked = []

    def noted(policy):
        asked.append(policy)
        return value(policy)

    between = PolicyGame(OneByOne(noted), space, space.uniform(FP32), end)
    estimate = estimator_from_name("exact").estimate(between, len(between.players), Stopping(32), 0)
    assert estimate.values.sum() == pytest.approx(value(end) - value(space.uniform(FP32)))
    assert end in asked
    for policy in asked:
        assert policy.float_joins == integer_regions(replace(policy, float_joins=end.float_joins), space.joins)[2]


def test_policies_that_differ_in_joins_only_by_their_start_are_no_game():
    space = space_of_joins(formats=(W8A8, FP32))
    integers = space.uniform(W8A8)
    with pytest.raises(ValueError, match="differ in joins"):
        PolicyGame(OneByOne(Game(space, 0)), space, replace(integers, float_joins=frozenset({"first"})), integers)
