import numpy as np
import pytest

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
