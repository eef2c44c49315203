"""Estimators of Shapley values: one file a method, chosen by name, behind one interface; they know numpy only."""

from __future__ import annotations

from smpq.choices import ESTIMATORS
from smpq.scoring.estimators.adaptive import Adaptive
from smpq.scoring.estimators.base import Estimator, Game, Stable, Stopping, estimator, estimator_from_name
from smpq.scoring.estimators.counted import CountedGame
from smpq.scoring.estimators.exact import Exact
from smpq.scoring.estimators.permutation import Antithetic, Permutation
from smpq.scoring.estimators.result import Estimate

__all__ = [
    "ESTIMATORS", "Adaptive", "Antithetic", "CountedGame", "Estimate", "Estimator", "Exact", "Game", "Permutation",
    "Stable", "Stopping", "estimator", "estimator_from_name",
]  # fmt: skip
