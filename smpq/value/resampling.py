"""The figure of a set of records on resamples of them, from which its standard error comes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from calib.errors import UserError
from smpq.value.loss import NORMAL_95

RESAMPLES = 200
"""Calls of a task's `metric_of` for one interval. A number and not a time: results must not depend on the machine."""
FEWEST_GROUPS = 10
"""With fewer of them a bootstrap's interval is no more than a guess."""
_ATTEMPTS = 20
"""So often a resample is drawn anew on which the figure is undefined."""
_BLOCKS = 100
_SEED = 0
_Array = npt.NDArray[np.float64]


class UndefinedError(UserError):
    """The figure, or its interval, is no number on the records that there are."""


class Resampled:
    """Figures of one set of records: of all, of resamples of its groups, and without some; each worked out once.

    1. A group is drawn with all of its records. Two sets with the same groups draw the same ones for the same number.
    2. A figure is NaN where it is undefined: where `metric_of` returns no finite number, or raises ValueError or
       ZeroDivisionError, as metrics do that need samples of two classes. Whatever else it raises is a UserError.
    """

    def __init__(
        self, metric_of: Callable[[Sequence[Any]], Any], records: Sequence[Any], groups: Sequence[Sequence[int]]
    ) -> None:
        """`groups` holds the positions of each group's records."""
        self.groups = groups
        self.reason = ""
        self._metric_of, self._records = metric_of, records
        self._drawn: dict[tuple[int, int], float] = {}
        self._without: list[float] = []

    def drawn(self, number: int, attempt: int) -> float:
        """Return the figure of the resample `number`, drawn for the time `attempt`."""
        if (number, attempt) not in self._drawn:
            generator = np.random.default_rng((_SEED, number, attempt))
            chosen = generator.integers(len(self.groups), size=len(self.groups))
            self._drawn[number, attempt] = self._figure([self.groups[index] for index in chosen])
        return self._drawn[number, attempt]

    @property
    def undefined(self) -> float:
        """The share of the resamples drawn so far on which the figure is undefined."""
        return sum(map(math.isnan, self._drawn.values())) / max(len(self._drawn), 1)

    def without_blocks(self) -> _Array:
        """Return the figures without one of up to 100 blocks of groups each."""
        if not self._without:
            blocks = min(_BLOCKS, len(self.groups))
            for block in range(blocks):
                self._without.append(
                    self._figure([group for index, group in enumerate(self.groups) if index % blocks != block])
                )
        return np.array(self._without)

    def _figure(self, groups: Sequence[Sequence[int]]) -> float:
        try:
            return figure_of(self._metric_of, [self._records[index] for group in groups for index in group])
        except UndefinedError as error:
            self.reason = str(error)
            return math.nan


def figure_of(metric_of: Callable[[Sequence[Any]], Any], records: Sequence[Any]) -> float:
    """Return what a task's `metric_of` says; `UndefinedError` where that is no finite number,
    UserError where it fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a metric warns of is told, or drawn anew
            value = float(metric_of(list(records)))
    except UserError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise UndefinedError(f"the task's metric_of() failed: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise UserError(f"the task's metric_of() failed: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise UndefinedError(f"the task's metric_of() gave {value} for {len(records)} records")
    return value


def replicates(sides: Sequence[Resampled]) -> _Array:
    """Return `[sides, RESAMPLES]`: the figures of all sides on the same resamples, each of which all of them have.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 8. `UndefinedError` where a resample
    on which all are defined is not found in 20 attempts.
    """
    found = []
    for number in range(RESAMPLES):
        for attempt in range(_ATTEMPTS):
            values = [side.drawn(number, attempt) for side in sides]
            if all(map(math.isfinite, values)):
                found.append(values)
                break
        else:
            reason = next(side.reason for side in sides if side.reason)
            raise UndefinedError(
                f"the metric has no interval, for it is undefined on most resamples of {len(sides[0].groups)} samples "
                f"or groups ({reason}): give more of them, above all of the rare class"
            )
    columns: _Array = np.array(list(zip(*found, strict=True)))
    return columns


def standard_error(values: _Array, groups: int) -> float:
    """Return the standard error that `[RESAMPLES]` replicates over so many groups show.

    It is wider for few groups, whose resamples vary too little and whose errors have a Student's distribution
    (the narrowness bias of Hesterberg 2015, arXiv 1411.5279), so that 1.96 of it are the half of a 95 % interval.
    """
    narrow = math.sqrt(groups / (groups - 1)) * float(stdtrit(groups - 1, 0.975)) / NORMAL_95
    return narrow * float(values.std(ddof=1))
