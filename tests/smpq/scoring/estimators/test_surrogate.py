import numpy as np
import pytest
from scipy import optimize

from smpq.scoring.estimators.exact import all_coalitions, values_of_table
from smpq.scoring.estimators.surrogate import PairKernel, _surprise, fit_kernel, fit_surrogate
from tests.smpq.scoring.estimators.games import saturating


@pytest.mark.parametrize("players", [1, 2, 5, 8])
def test_the_shapley_values_of_a_kernel_are_those_of_its_table(players):
    generator = np.random.default_rng(players)
    kernel = PairKernel(generator.uniform(0.02, 1.5, players), 0.3, 2.0, 0.0)
    signs = 2.0 * all_coalitions(players) - 1
    point = signs[[generator.integers(2**players)]]
    # half differences of the game V = k are k, which is odd
    expected = values_of_table(kernel(signs, point)[:, 0], players)
    assert kernel.shapley_values(point)[0] == pytest.approx(expected, abs=1e-12)


def test_many_players_do_not_overflow():
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (5, 600))
    kernel = PairKernel(np.full(600, 2.5), 1.0, 1.0, 0.0)
    assert np.isfinite(kernel.shapley_values(signs)).all()
    assert kernel(signs, signs).diagonal() == pytest.approx(601.0)


def test_the_gradient_of_the_likelihood_is_right():
    generator = np.random.default_rng(0)
    signs = 2.0 * all_coalitions(5)[generator.choice(32, 20, replace=False)] - 1
    targets = generator.normal(size=20)
    point = np.array([-1.0, -2.0, -0.5, -1.5, -3.0, -1.0, 0.3, -2.0])
    numeric = optimize.approx_fprime(point, lambda p: _surprise(p, signs, targets)[0], 1e-6)
    assert _surprise(point, signs, targets)[1] == pytest.approx(numeric, rel=1e-4, abs=1e-4)


def half_differences(players: int, count: int, seed: int = 0):
    game = saturating(players, seed)
    chosen = np.append(
        2**players - 1, np.random.default_rng(seed).choice(2 ** (players - 1) - 1, count - 1, replace=False)
    )
    return 2.0 * all_coalitions(players)[chosen] - 1, (game.table[chosen] - game.table[::-1][chosen]) / 2, game


def test_left_out_residuals_are_those_of_fits_without_the_value():
    signs, targets, _ = half_differences(7, 30)
    surrogate = fit_surrogate(signs, targets, 100, np.random.default_rng(0))
    scale = np.sqrt((targets**2).mean())
    kernel = fit_kernel(signs, targets / scale, np.random.default_rng(0))
    for out in (0, 11, 29):
        kept = np.arange(30) != out
        covariance = kernel(signs[kept], signs[kept]) + (kernel.noise + 1e-10) * np.eye(29)
        predicted = kernel(signs[[out]], signs[kept]) @ np.linalg.solve(covariance, targets[kept])
        assert surrogate.left_out[out] == pytest.approx(targets[out] - predicted[0], rel=1e-5, abs=1e-9)


def test_what_is_not_used_is_tested_by_prediction():
    signs, targets, game = half_differences(8, 100)
    surrogate = fit_surrogate(signs, targets, 60, np.random.default_rng(0))
    unused = np.isclose(surrogate.left_out, surrogate.residuals, rtol=1e-9, atol=0)
    assert unused.sum() == 40
    assert not unused[0]
    assert surrogate.shapley_values == pytest.approx(game.exact, abs=0.2 * game.exact.std())


def test_an_all_zero_game_is_no_problem():
    surrogate = fit_surrogate(2.0 * all_coalitions(4) - 1, np.zeros(16), 100, np.random.default_rng(0))
    assert surrogate.shapley_values.tolist() == [0.0] * 4
