"""Estimators of Shapley values: one file a method, chosen by name, behind one interface; they know numpy only."""

from __future__ import annotations

from smpq.estimators.adaptive import Adaptive
from smpq.estimators.base import ESTIMATORS, Estimator, Game, Stable, Stopping, estimator, estimator_from_name
from smpq.estimators.counted import CountedGame
from smpq.estimators.exact import Exact
from smpq.estimators.permutation import Antithetic, Permutation
from smpq.estimators.result import Estimate
from smpq.estimators.stratified import Stratified
from smpq.estimators.truncated import ShapleyNas, Truncated, mean_minus_deviation

__all__ = [
    "ESTIMATORS", "Adaptive", "Antithetic", "CountedGame", "Estimate", "Estimator", "Exact", "Game", "Permutation", "ShapleyNas", "Stable", "Stopping",
    "Stratified", "Truncated", "estimator", "estimator_from_name", "mean_minus_deviation",
]  # fmt: skip
