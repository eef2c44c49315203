import numpy as np
import pytest

from calib.errors import UserError
from smpq.scoring.estimators import Stopping, Stratified
from smpq.scoring.estimators.permutation import marginals_of_walk, walk
from smpq.scoring.estimators.stratified import circle
from tests.smpq.scoring.estimators.games import saturating


def test_a_circle_is_all_of_its_walks_in_both_directions():
    game = saturating(6)
    order = np.random.default_rng(0).permutation(6)
    walks = [np.roll(turned, shift) for turned in (order, order[::-1]) for shift in range(6)]
    expected = np.mean([marginals_of_walk(one, game(walk(one))) for one in walks], axis=0)
    design = circle(order)
    assert design.marginals(game(design.coalitions)) == pytest.approx(expected, abs=1e-12)
    assert len({row.tobytes() for row in design.coalitions}) == 6 * 5 + 2


def test_the_least_evaluations_give_two_circles_and_one_less_is_refused():
    estimate = Stratified().estimate(saturating(10), 10, Stopping(182), seed=0)
    assert estimate.samples.tolist() == [2] * 10
    with pytest.raises(UserError, match="at least 182 evaluations"):
        Stratified().estimate(saturating(10), 10, Stopping(181), seed=0)
