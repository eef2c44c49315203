"""Shapley values of a supernet's operations, accumulated over several estimates while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smpq.estimators.base import Floats
from smpq.removal import Removals
from smpq.supernet import Operation


@dataclass(frozen=True)
class Contributions:
    """What accumulates over updates.

    1. `walks` `[walks, players]`: each walk's part of the score, in standard deviations; `score` is their mean.
    2. `mean` `[players]` is the plain mean of all estimates in units of the game's value.
    3. `truncated` counts the walks that were cut, `evaluations` coalitions.

    The spread over walks is sampling error; that the supernet changes between updates adds to it, and the bias of cut walks is no part of it.
    """

    operations: tuple[Operation, ...]
    walks: Floats
    mean: Floats
    updates: int = 0
    truncated: int = 0
    evaluations: int = 0

    @classmethod
    def start(cls, operations: Sequence[Operation]) -> Contributions:
        """Return what no update has touched; Shapley-NAS starts at noise of 1e-3, which decides nothing."""
        return cls(tuple(operations), np.zeros((0, len(operations))), np.zeros(len(operations)))

    @property
    def score(self) -> Floats:
        """The accumulated Shapley values `[players]`, zeros before the first update."""
        return np.asarray(self.walks.mean(0) if len(self.walks) else np.zeros(len(self.operations)), float)

    def updated(self, removals: Removals, momentum: float, *, deviation: bool = False) -> Contributions:
        """Return score = momentum * score + (1 - momentum) * z, with z the estimate standardised over each side's matrix.

        Shapley-NAS' code (its paper normalises by length instead). A matrix whose values are all equal gives z = 0. With `deviation`
        the standard deviation over walks is subtracted from the estimate first. Each matrix is [groups, widths] of one side.
        """
        rows, estimate = removals.marginals, removals.estimate
        if deviation:
            rows = rows - rows.std(0)
        phi, z = rows.mean(0), np.zeros_like(rows)
        sides = np.array([operation.side for operation in self.operations])
        for side in ("weight", "activation"):
            own = sides == side
            spread = float(phi[own].std()) if own.any() else 0.0
            if spread > 0:
                z[:, own] = (rows[:, own] - phi[own].mean()) / spread
        total = len(self.walks) + len(z)
        old = self.walks * momentum * (total / max(len(self.walks), 1))
        new = z * (1 - momentum) * (total / len(z))
        count = self.updates + 1
        return Contributions(
            self.operations,
            np.concatenate([old, new]),
            self.mean + (estimate.values - self.mean) / count,
            count,
            self.truncated + estimate.truncated,
            self.evaluations + estimate.evaluations,
        )

    def standard_error(self) -> Floats:
        """Return `[players]`, that of the score: walks within an update are independent draws, updates differ by more."""
        count = len(self.walks)
        if not count:
            return np.zeros(len(self.operations))
        parts = np.split(self.walks, self.updates)
        variance = sum(len(part) * part.var(0, ddof=1) for part in parts)
        return np.asarray(np.sqrt(variance) / count, float)

    def to_json(self) -> dict[str, Any]:
        """Return the file form."""
        score, errors = self.score, self.standard_error()
        rows = [
            {
                "group": operation.group,
                "side": operation.side,
                "operation": operation.name,
                "score": float(score[i]),
                "standard_error": float(errors[i]),
                "mean": float(self.mean[i]),
                "walks": self.walks[:, i].tolist(),
            }
            for i, operation in enumerate(self.operations)
        ]
        counts = {name: getattr(self, name) for name in ("updates", "truncated", "evaluations")}
        return {**counts, "walks": len(self.walks), "operations": rows}

    @classmethod
    def from_json(cls, record: Any, operations: Sequence[Operation]) -> Contributions:
        """Read the file form of these operations; KeyError, TypeError or ValueError when it is incomplete or of others."""
        rows = {(row["group"], row["side"], row["operation"]): row for row in record["operations"]}
        if len(rows) != len(operations):
            raise ValueError(f"{len(rows)} operations, not {len(operations)}")
        found = [rows[operation.group, operation.side, operation.name] for operation in operations]
        walks = np.array([row["walks"] for row in found], float).reshape(len(found), -1).T
        mean = np.array([row["mean"] for row in found], float)
        return cls(tuple(operations), walks, mean, record["updates"], record["truncated"], record["evaluations"])
