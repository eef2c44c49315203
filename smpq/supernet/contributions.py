"""Shapley values of a supernet's operations, accumulated over several estimates while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smpq.files import EstimateRow
from smpq.scoring.estimators.base import Floats
from smpq.supernet.network import Operation
from smpq.supernet.removal import Removals


@dataclass(frozen=True)
class Contributions:
    """What accumulates over updates.

    1. `walks` `[walks, players]`: each walk's part of the score, in standard deviations; `score` is their mean.
    2. `marginals` `[walks, players]` are what the walks found, in units of the game's value; `mean` is their mean.
    3. `parts` and `mean_parts` `[parts, players]` are the same two means on parts of the samples, which say how far
       these decide; nothing where that is not known.
    4. `truncated` counts the walks that were cut, `evaluations` coalitions.

    The standard errors are those of the orders that were drawn, of the walks within an update, and of the samples, of
    the parts. How a value changes with the supernet, and the bias of cut walks, are no part of them.
    """

    operations: tuple[Operation, ...]
    walks: Floats
    marginals: Floats
    parts: Floats
    mean_parts: Floats
    updates: int = 0
    truncated: int = 0
    evaluations: int = 0

    @classmethod
    def start(cls, operations: Sequence[Operation]) -> Contributions:
        """Return what no update has touched; Shapley-NAS starts at noise of 1e-3, which decides nothing."""
        nothing = np.zeros((0, len(operations)))
        return cls(tuple(operations), nothing, nothing, nothing, nothing)

    @property
    def score(self) -> Floats:
        """The accumulated Shapley values `[players]`, zeros before the first update."""
        return _mean(self.walks)

    @property
    def mean(self) -> Floats:
        """The mean Shapley values over updates `[players]`, in units of the game's value."""
        return _mean(self.marginals)

    def updated(self, removals: Removals, momentum: float, *, deviation: bool = False) -> Contributions:
        """Return score = momentum * score + (1 - momentum) * z, with z the estimate standardised over each side's
        matrix.

        Shapley-NAS' code (its paper normalises by length instead). A matrix whose values are all equal gives z = 0.
        With `deviation` the standard deviation over walks is subtracted from the estimate first. Each matrix is
        [groups, widths] of one side.
        """
        rows, estimate = removals.marginals, removals.estimate
        if deviation:
            rows = rows - rows.std(0)
        found = removals.parts if removals.parts is not None else np.zeros((0, len(self.operations)))
        phi, z, parts = rows.mean(0), np.zeros_like(rows), np.zeros_like(found)
        sides = np.array([operation.side for operation in self.operations])
        for side in ("weight", "activation"):
            own = sides == side
            spread = float(phi[own].std()) if own.any() else 0.0
            if spread > 0:
                z[:, own] = (rows[:, own] - phi[own].mean()) / spread
                parts[:, own] = found[:, own] / spread
        total = len(self.walks) + len(z)
        old = self.walks * momentum * (total / max(len(self.walks), 1))
        new = z * (1 - momentum) * (total / len(z))
        return Contributions(
            self.operations,
            np.concatenate([old, new]),
            np.concatenate([self.marginals, removals.marginals]),
            (1 - momentum) * parts + (momentum * self.parts if self.updates else 0.0),
            (found + (self.updates * self.mean_parts if self.updates else 0.0)) / (self.updates + 1),
            self.updates + 1,
            self.truncated + estimate.truncated,
            self.evaluations + estimate.evaluations,
        )

    def standard_errors(self) -> tuple[Floats, Floats]:
        """Return those of `score` and of `mean` `[players]`."""
        return self.error(self.walks, self.parts), self.error(self.marginals, self.mean_parts)

    def error(self, rows: Floats, parts: Floats) -> Floats:
        """Return the standard errors `[k]` of the means of numbers that there are of each walk, `[walks, k]`, and on
        each part of the samples, `[parts, k]`.
        """
        if not self.updates:
            return np.zeros(rows.shape[1])
        by_orders = sum(len(walks) * walks.var(0, ddof=1) for walks in np.split(rows, self.updates)) / len(rows) ** 2
        by_samples = parts.var(0, ddof=1) / len(parts) if len(parts) > 1 else 0.0
        return np.asarray(np.sqrt(by_orders + by_samples), float)

    def to_json(self) -> dict[str, Any]:
        """Return the file form."""
        score, mean, (errors, mean_errors) = self.score, self.mean, self.standard_errors()
        rows = [
            {
                "group": operation.group,
                "side": operation.side,
                "operation": operation.name,
                "score": float(score[i]),
                "standard_error": float(errors[i]),
                "mean": float(mean[i]),
                "mean_standard_error": float(mean_errors[i]),
                "walks": self.walks[:, i].tolist(),
                "marginals": self.marginals[:, i].tolist(),
                "parts": self.parts[:, i].tolist(),
                "mean_parts": self.mean_parts[:, i].tolist(),
            }
            for i, operation in enumerate(self.operations)
        ]
        counts = {name: getattr(self, name) for name in ("updates", "truncated", "evaluations")}
        return {**counts, "walks": len(self.walks), "operations": rows}

    @classmethod
    def from_row(cls, record: EstimateRow, operations: Sequence[Operation]) -> Contributions:
        """Read the file form; ValueError unless it is about these operations, each once."""
        rows = {(row.group, row.side, row.operation): row for row in record.operations}
        wanted = [(operation.group, operation.side, operation.name) for operation in operations]
        if len(rows) != len(record.operations) or rows.keys() != set(wanted):
            raise ValueError(
                f"it has {len(record.operations)} operations, which are not the {len(wanted)} of this space, each once"
            )

        def column(name: str) -> Floats:
            found: Floats = np.array([getattr(rows[key], name) for key in wanted], float)
            return np.ascontiguousarray(found.T)  # sums of another order round differently

        walks, marginals, parts, means = (column(name) for name in ("walks", "marginals", "parts", "mean_parts"))
        own = tuple(operations)
        return cls(own, walks, marginals, parts, means, record.updates, record.truncated, record.evaluations)


def _mean(rows: Floats) -> Floats:
    return np.asarray(rows.mean(0) if len(rows) else np.zeros(rows.shape[1]), float)
