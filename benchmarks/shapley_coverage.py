"""How often the estimators' 95 % intervals cover the exact Shapley values of games of 10 players.

A case is a player under a seed. `standard_error_ratio` is the root mean square of the standard errors over that of the
errors.
"""

from __future__ import annotations

from math import factorial

import games
import numpy as np

from smpq.scoring.estimators import Stopping, estimator_from_name

PLAYERS = 10
SEEDS = 100
EVALUATIONS = (200, 300, 500)
NAMES = ("permutation", "antithetic", "adaptive")


def main() -> None:
    rows = []
    for game_name, game in (
        ("digits_units", games.digits_game("digits_units")),
        ("synthetic", games.synthetic_game(PLAYERS)),
    ):
        exact = estimator_from_name("exact").estimate(game, PLAYERS, Stopping(2**PLAYERS), 0)
        by_hand = shapley_values_by_definition(game)
        error = float(abs(exact.values - by_hand).max())
        rows.append({"game": game_name, "estimator": "exact", "evaluations": exact.evaluations, "largest_error": error})
        for name in NAMES:
            for evaluations in EVALUATIONS:
                rows.append({"game": game_name} | row(game, name, evaluations, by_hand))
    games.keep("shapley_coverage", games.record(rows, f"0..{SEEDS - 1}", players=PLAYERS, level=0.95))


def row(game: games.Table, name: str, evaluations: int, exact: np.ndarray) -> dict[str, object]:
    """Measure one estimator with one number of evaluations."""
    covered, errors, standard_errors = [], [], []
    for seed in range(SEEDS):
        estimate = estimator_from_name(name).estimate(game, game.players, Stopping(evaluations), seed)
        low, high = estimate.interval(0.95)
        covered.append((low <= exact) & (exact <= high))
        errors.append(estimate.values - exact)
        standard_errors.append(estimate.standard_errors)
    return {
        "estimator": name,
        "evaluations": evaluations,
        "cases": int(np.size(covered)),
        "coverage": float(np.mean(covered)),
        "lowest_coverage_of_a_player": float(np.mean(covered, axis=0).min()),
        "rms_error": float(np.sqrt(np.mean(np.square(errors)))),
        "standard_error_ratio": float(np.sqrt(np.mean(np.square(standard_errors)) / np.mean(np.square(errors)))),
    }


def shapley_values_by_definition(game: games.Table) -> np.ndarray:
    """Return the values from the definition, coalition by coalition, as an independent check of the enumeration."""
    n = game.players
    values = np.zeros(n)
    for number in range(2**n):
        size = number.bit_count()
        for player in range(n):
            bit = 1 << (n - 1 - player)
            if not number & bit:
                gain = game.values[number | bit] - game.values[number]
                values[player] += factorial(size) * factorial(n - size - 1) / factorial(n) * gain
    return values


if __name__ == "__main__":
    main()
