"""Shapley values of a supernet's operations, accumulated over several estimates while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smpq.estimators.base import Floats
from smpq.estimators.result import Estimate
from smpq.supernet import Operation


@dataclass(frozen=True)
class Contributions:
    """What accumulates: `score` and its `variance` `[players]`, in standard deviations; `mean` `[players]` is the plain mean of all
    estimates in units of the game's value, `mean_variance` that of it.

    `variance` is that of the walks: the supernet that changes between updates adds to it, and bias by cut walks is no part of it.
    """

    operations: tuple[Operation, ...]
    score: Floats
    variance: Floats
    mean: Floats
    mean_variance: Floats
    updates: int = 0
    walks: int = 0
    truncated: int = 0
    evaluations: int = 0

    @classmethod
    def start(cls, operations: Sequence[Operation]) -> Contributions:
        """Return zeros; Shapley-NAS starts at noise of 1e-3, which decides nothing."""
        zeros = np.zeros(len(operations))
        return cls(tuple(operations), zeros, zeros, zeros, zeros)

    def updated(self, estimate: Estimate, momentum: float, *, deviation: bool = False) -> Contributions:
        """Return score = momentum * score + (1 - momentum) * z, with z the estimate standardised over each side's matrix.

        Shapley-NAS' code (its paper normalises by length instead). A matrix whose values are all equal gives z = 0. With `deviation`
        the standard deviation over walks is subtracted from the estimate first. Each matrix is [groups, widths] of one side.
        """
        phi, errors = estimate.values, estimate.standard_errors
        if deviation:
            phi = phi - errors * np.sqrt(estimate.samples - 1)
        z, z_errors = np.zeros_like(phi), np.zeros_like(phi)
        sides = np.array([operation.side for operation in self.operations])
        for side in ("weight", "activation"):
            own = sides == side
            spread = float(phi[own].std()) if own.any() else 0.0
            if spread > 0:
                z[own] = (phi[own] - phi[own].mean()) / spread
                z_errors[own] = errors[own] / spread
        count = self.updates + 1
        return Contributions(
            self.operations,
            momentum * self.score + (1 - momentum) * z,
            momentum**2 * self.variance + (1 - momentum) ** 2 * z_errors**2,
            self.mean + (estimate.values - self.mean) / count,
            (self.mean_variance * (count - 1) ** 2 + errors**2) / count**2,
            count,
            self.walks + int(estimate.samples.max()),
            self.truncated + estimate.truncated,
            self.evaluations + estimate.evaluations,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the file form."""
        rows = [
            {
                "group": operation.group,
                "side": operation.side,
                "operation": operation.name,
                "score": float(self.score[i]),
                "variance": float(self.variance[i]),
                "mean": float(self.mean[i]),
                "mean_variance": float(self.mean_variance[i]),
            }
            for i, operation in enumerate(self.operations)
        ]
        counts = {name: getattr(self, name) for name in ("updates", "walks", "truncated", "evaluations")}
        return {**counts, "operations": rows}

    @classmethod
    def from_json(cls, record: Any, operations: Sequence[Operation]) -> Contributions:
        """Read the file form of these operations; KeyError, TypeError or ValueError when it is incomplete or of others."""
        rows = {(row["group"], row["side"], row["operation"]): row for row in record["operations"]}
        if len(rows) != len(operations):
            raise ValueError(f"{len(rows)} operations, not {len(operations)}")
        found = [rows[operation.group, operation.side, operation.name] for operation in operations]
        columns = (np.array([row[name] for row in found], float) for name in ("score", "variance", "mean", "mean_variance"))
        score, variance, mean, mean_variance = columns
        return cls(
            tuple(operations), score, variance, mean, mean_variance,
            record["updates"], record["walks"], record["truncated"], record["evaluations"],
        )  # fmt: skip
