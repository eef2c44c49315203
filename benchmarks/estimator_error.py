"""The mean squared error of the estimators against exact Shapley values, for the same number of evaluations, on 16 and
18 players.

`ratio` is the mean squared error over that of plain permutation sampling; `seconds` is the estimator's own time, as the
game is a table.
"""

from __future__ import annotations

import time

import games
import numpy as np

from smpq.scoring.estimators import Stopping, estimator_from_name

SEEDS = 50
NAMES = ("permutation", "antithetic", "adaptive")
EVALUATIONS = (200, 700, 1500)


def main() -> None:
    rows = []
    for game_name, game in (
        ("digits_tensors", games.digits_game("digits_tensors")),
        ("synthetic_16", games.synthetic_game(16)),
        ("synthetic_18", games.synthetic_game(18, seed=1)),
    ):
        exact = estimator_from_name("exact").estimate(game, game.players, Stopping(2**game.players), 0).values
        for evaluations in EVALUATIONS:
            plain = None
            for name in NAMES:
                measured = row(game, name, evaluations, exact)
                plain = plain or measured["mse"]
                rows.append(
                    {"game": game_name, "players": game.players} | measured | {"ratio": measured["mse"] / plain}
                )
    games.keep("estimator_error", games.record(rows, f"0..{SEEDS - 1}"))


def row(game: games.Table, name: str, evaluations: int, exact: np.ndarray) -> dict[str, float | str]:
    """Measure one estimator with one number of evaluations."""
    errors, covered, start, used = [], [], time.perf_counter(), []
    for seed in range(SEEDS):
        estimate = estimator_from_name(name).estimate(game, game.players, Stopping(evaluations), seed)
        low, high = estimate.interval(0.95)
        errors.append(estimate.values - exact)
        covered.append((low <= exact) & (exact <= high))
        used.append(estimate.evaluations)
    mean = np.mean(errors, axis=0)
    return {
        "estimator": name,
        "evaluations": evaluations,
        "most_evaluations_used": max(used),
        "mse": float(np.mean(np.square(errors))),
        "squared_bias": float(np.mean(mean**2)),
        "spread": float(exact.std()),
        "coverage": float(np.mean(covered)),
        "seconds": (time.perf_counter() - start) / SEEDS,
    }


if __name__ == "__main__":
    main()
