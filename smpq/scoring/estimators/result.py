"""Shapley values with their uncertainty and where they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from calib.errors import UserError

SCHEMA = 1
StopReason: TypeAlias = Literal["exact", "evaluations", "precision", "stable"]
_STOP_REASONS: tuple[StopReason, ...] = ("exact", "evaluations", "precision", "stable")


@dataclass(frozen=True)
class Estimate:
    """Shapley values in units of the game, by player.

    `values`, `standard_errors`, `degrees_of_freedom` and `samples` are `[players]`; `covariance` `[players, players]`
    is that of the values, None where only their variances are known. `degrees_of_freedom` is infinite where a standard
    error is known rather than estimated. `evaluations` counts distinct coalitions, `truncated` the walks that were cut
    short.
    """

    values: npt.NDArray[np.float64]
    standard_errors: npt.NDArray[np.float64]
    degrees_of_freedom: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64] | None
    samples: npt.NDArray[np.int64]
    evaluations: int
    truncated: int
    seed: int
    estimator: str
    stop_reason: StopReason

    def interval(self, level: float = 0.95) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the lower and upper ends `[players]` of Student's t intervals, each of which covers with probability
        `level`.
        """
        # not scipy.stats, which gives the same and takes a twelfth of the time in which every command and worker starts
        half = special.stdtrit(self.degrees_of_freedom, (1 + level) / 2) * self.standard_errors
        return self.values - half, self.values + half

    def to_json(self) -> dict[str, Any]:
        """Return the file form; infinite degrees of freedom are null."""
        return {
            "schema": SCHEMA,
            "estimator": self.estimator,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "truncated": self.truncated,
            "stop_reason": self.stop_reason,
            "values": self.values.tolist(),
            "standard_errors": self.standard_errors.tolist(),
            "degrees_of_freedom": [
                freedom if math.isfinite(freedom) else None for freedom in self.degrees_of_freedom.tolist()
            ],
            "covariance": None if self.covariance is None else self.covariance.tolist(),
            "samples": self.samples.tolist(),
        }

    @classmethod
    def from_json(cls, record: Any) -> Estimate:
        """Read the file form; UserError when it is of another version or incomplete."""
        try:
            if record["schema"] != SCHEMA:
                raise UserError(
                    f"this estimate has schema {record['schema']!r}; this version reads schema {SCHEMA}: estimate again"
                )
            values = np.array(record["values"], float)
            covariance = None if record["covariance"] is None else np.array(record["covariance"], float)
            freedom = np.array([math.inf if cell is None else cell for cell in record["degrees_of_freedom"]], float)
            estimate = cls(
                values, np.array(record["standard_errors"], float), freedom, covariance, np.array(record["samples"], np.int64),
                record["evaluations"], record["truncated"], record["seed"], record["estimator"], record["stop_reason"],
            )  # fmt: skip
            rows = [estimate.standard_errors, freedom, estimate.samples]
            if any(row.shape != values.shape for row in rows) or (
                covariance is not None and covariance.shape != 2 * values.shape
            ):
                raise UserError("the rows of this estimate differ in length: estimate again")
            if estimate.stop_reason not in _STOP_REASONS:
                raise UserError(f"unknown stop reason {estimate.stop_reason!r} in this estimate: estimate again")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the estimate is incomplete ({error!r}): estimate again") from error
        return estimate
