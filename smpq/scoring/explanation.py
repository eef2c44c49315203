"""How the contributions of a policy are estimated; importing it loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from calib.declared import Declared, Group, Interval, OneOf, check_declared
from smpq.choices import ESTIMATORS

_EVALUATIONS_EACH = 8


@dataclass(frozen=True)
class Explanation:
    """An estimator by name, the evaluations it may make, and the precision that is enough.

    Without a number of evaluations there are half as many as scoring may make, or eight for each player where that is
    more.
    """

    estimator: Annotated[str, Declared("how they are estimated", OneOf(ESTIMATORS), "--estimator")] = "adaptive"
    evaluations: Annotated[
        int | None,
        Declared(
            "policies that may be evaluated", Interval(1), "--evaluations", Group.LENGTH, "half as many as scoring"
        ),
    ] = None
    precision: Annotated[
        float,
        Declared(
            "stop when all standard errors are below this share of the spread",
            Interval(0, 1, below=True),
            "--precision",
            Group.LENGTH,
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        check_declared(self)

    def budget(self, players: int, scoring: int) -> int:
        """Return the evaluations for so many players, in a run whose scoring may make so many."""
        return max(scoring // 2, _EVALUATIONS_EACH * players) if self.evaluations is None else self.evaluations
