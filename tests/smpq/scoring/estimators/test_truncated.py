import numpy as np
import pytest

from calib.errors import UserError
from smpq.scoring.estimators import Estimate, Permutation, ShapleyNas, Stopping, Truncated, mean_minus_deviation
from smpq.scoring.estimators.exact import all_coalitions
from smpq.scoring.estimators.permutation import marginals_of_walk, walk
from tests.smpq.scoring.estimators.games import TableGame, additive, saturating


def saturated(players: int) -> TableGame:
    """Monotone, and nearly flat beyond half of the players; late marginals differ."""
    return TableGame(np.tanh(all_coalitions(players) @ np.linspace(0.2, 0.9, players)))


@pytest.mark.slow
def test_following_some_walks_removes_the_bias():
    game = saturated(9)
    fair, hasty = (
        np.mean(
            [Truncated(0.3, follow).estimate(game, 9, Stopping(200), seed).values - game.exact for seed in range(150)],
            axis=0,
        )
        for follow in (0.5, 0.0)
    )
    assert abs(hasty).max() > 0.008
    assert abs(fair).max() < 0.3 * abs(hasty).max()


def test_cut_walks_are_counted_and_cost_less():
    game = saturated(12)
    cut = Truncated(0.2, follow=0.0).estimate(game, 12, Stopping(300), seed=0)
    whole = Permutation().estimate(game, 12, Stopping(300), seed=0)
    assert 0 < cut.truncated <= cut.samples[0]
    assert cut.samples[0] > 1.3 * whole.samples[0]
    assert abs(cut.values - game.exact).max() < 0.2 * abs(game.table[-1] - game.table[0])


def test_without_a_tolerance_a_walk_is_whole():
    estimate = Truncated(0.0).estimate(saturating(10), 10, Stopping(200), seed=0)
    assert estimate.truncated == 0


def test_shapley_nas_gives_players_behind_the_cut_nothing():
    game = additive(6)
    game.table[:] = all_coalitions(6).sum(axis=1)
    # five of six players are left after the first step, and so on: below 0.6 * 6 after the third
    estimate = ShapleyNas(gamma=0.6).estimate(game, 6, Stopping(40), seed=0)
    assert estimate.truncated == estimate.samples[0]
    assert estimate.values.sum() == pytest.approx(3.0)


def test_shapley_nas_without_a_cut_is_a_walk_downwards():
    game = saturating(5)
    game.table += 3
    estimate = ShapleyNas(gamma=0.0).estimate(game, 5, Stopping(2000, 0.05), seed=0)
    assert estimate.values == pytest.approx(game.exact, abs=4 * estimate.standard_errors.max())


def test_the_score_of_shapley_nas_is_mean_minus_population_deviation():
    orders = [np.array([2, 0, 1]), np.array([0, 1, 2]), np.array([1, 2, 0])]
    game = saturating(3)
    marginals = np.array([marginals_of_walk(order, game(walk(order))) for order in orders])
    mean, error = marginals.mean(axis=0), marginals.std(axis=0, ddof=1) / np.sqrt(3)
    estimate = Estimate(mean, error, np.full(3, 2.0), None, np.full(3, 3), 8, 0, 0, "shapley-nas", "evaluations")
    assert mean_minus_deviation(estimate) == pytest.approx(mean - marginals.std(axis=0))


def test_fresh_batches_are_drawn_at_the_grand_coalition():
    asked = []

    def accuracy(coalitions):
        asked.extend(coalitions.sum(axis=1).tolist())
        return coalitions.mean(axis=1)

    estimate = ShapleyNas(gamma=0.5, fresh_batches=True).estimate(accuracy, 4, Stopping(15), seed=0)
    # a walk: all four, three, two (half is not below half), one (cut)
    assert asked == [4, 3, 2, 1] * 3
    assert estimate.evaluations == 12
    assert estimate.samples.tolist() == [3] * 4


@pytest.mark.parametrize("options", [{"tolerance": 1.0}, {"tolerance": -0.1}, {"follow": 1.5}, {"follow": -1}])
def test_senseless_options_are_refused(options):
    with pytest.raises(UserError):
        Truncated(**options)


def test_shapley_nas_needs_positive_values():
    with pytest.raises(UserError, match="positive"):
        ShapleyNas().estimate(saturating(6), 6, Stopping(30), seed=0)
    with pytest.raises(UserError, match="gamma"):
        ShapleyNas(gamma=1.0)


def test_cut_walks_among_known_coalitions_come_to_an_end():
    game = additive(4)
    estimate = ShapleyNas(gamma=0.95).estimate(game, 4, Stopping(15), seed=0)
    assert estimate.samples.tolist() == [15] * 4
    assert estimate.evaluations < 15
