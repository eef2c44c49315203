"""What a metric keeps of the samples that went through a model, and the figure that they come to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from calib.task import Batch
from smpq.files import Interval
from smpq.value.column import Column
from smpq.value.loss import NORMAL_95, Loss, loss_of

_REPEATED = 10
"""So many samples with one of two values are right or wrong, whatever the values are."""


@dataclass(frozen=True)
class Figure:
    """A figure, or the change of one, with its standard error."""

    value: float
    standard_error: float
    ends: Interval | None = None

    @property
    def interval(self) -> Interval:
        """The 95 % interval: `ends`, or that of a normal distribution."""
        return self.ends or Interval.around(self.value, self.standard_error)


class Collected(ABC):
    """What a metric keeps of the batches that went through one model.

    Batches are numbered, and count in the order of their numbers. Two of these are compared over the batches of both,
    sample by sample: they are given the same data.
    """

    early: bool
    """Whether a part of the samples says what all of them will."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}  # samples of each batch

    @property
    def batches(self) -> int:
        """How many batches it has."""
        return len(self.sizes)

    @property
    def samples(self) -> int:
        """How many samples it has."""
        return sum(self.sizes.values())

    @abstractmethod
    def take(self, number: int, output: Any, batch: Batch) -> None:
        """Keep of a model's output what the metric needs. UserError where the task's functions do not work."""

    def _shared(self, other: Collected) -> tuple[int, ...]:
        return tuple(sorted(self.sizes.keys() & other.sizes.keys()))

    @property
    @abstractmethod
    def value(self) -> float:
        """The figure."""

    @property
    @abstractmethod
    def is_share(self) -> bool:
        """Whether all that is known of the metric lies between 0 and 1, as shares of samples do."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """How much of the metric one sample can lose; 0 where that is not known."""

    @abstractmethod
    def figure(self) -> Figure:
        """Return the figure with its standard error."""

    @abstractmethod
    def change_to(self, later: Any) -> Figure:
        """Return by how much the figure changes to another model's, over the samples of both."""

    @abstractmethod
    def loss_to(self, later: Any, point: float, largest: float, *, complete: bool = True) -> Loss:
        """Return what is lost against another model's, in points. Few samples without a change show no zero; `largest`
        is how many points one sample can lose, 0 where that is not known.
        """

    @abstractmethod
    def doubt(self) -> str | None:
        """Say why the interval cannot be relied on; None where it can."""


class MeanCollected(Collected):
    """One value of each sample; the figure is their mean."""

    early = True

    def __init__(self, measure: Callable[[Any, Batch], Tensor]) -> None:
        """`measure` gives the `[n]` values of a model's output on a batch."""
        super().__init__()
        self._measure = measure
        self._column = Column(torch.float64)

    def add(self, number: int, values: Tensor) -> None:
        """Keep the `[n]` values of a batch."""
        self.sizes[number] = len(values)
        self._column.add(number, values)

    def take(self, number: int, output: Any, batch: Batch) -> None:
        """Keep the values of a batch."""
        self.add(number, self._measure(output, batch))

    def values_of(self, numbers: Sequence[int]) -> Tensor:
        """Return the values of some batches."""
        return self._column.of(numbers)

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.values_of(sorted(self.sizes)).mean())

    @property
    def is_share(self) -> bool:
        """Whether the value of each sample lies between 0 and 1."""
        values = self.values_of(sorted(self.sizes))
        return bool(((values >= 0) & (values <= 1)).all())

    @property
    def largest(self) -> float:
        """Of shares 1, of right and wrong how far they are apart."""
        return 1.0 if self.is_share else _right_and_wrong(self.values_of(sorted(self.sizes)))[1]

    def figure(self) -> Figure:
        """Return the mean with its standard error. Of right and wrong the interval is Wilson's (1927), which has a
        width where all samples are right, and does not reach beyond.
        """
        values = self.values_of(sorted(self.sizes))
        found, (low, apart) = mean_of(values), _right_and_wrong(values)
        return replace(found, ends=_wilson((found.value - low) / apart, len(values), low, apart)) if apart else found

    def change_to(self, later: MeanCollected) -> Figure:
        """Return the mean of the paired differences. Of right and wrong the standard error is that of `loss_of`: few
        samples without a change do not show that there are none.
        """
        shared = self._shared(later)
        before, after = self.values_of(shared), later.values_of(shared)
        apart = _right_and_wrong(torch.cat([before, after]))[1]
        if not apart:
            return mean_of(after - before)
        found = loss_of(after - before, apart)
        return Figure(found.mean, found.standard_error)

    def loss_to(self, later: MeanCollected, point: float, largest: float, *, complete: bool = True) -> Loss:
        """See `smpq.value.loss.loss_of`."""
        shared = self._shared(later)
        return loss_of((self.values_of(shared) - later.values_of(shared)) / point, largest, complete=complete)

    def doubt(self) -> None:
        """Return None."""


def _right_and_wrong(values: Tensor) -> tuple[float, float]:
    """Return the lower of the two values that samples have, and how far they are apart; 0 apart where there are more of
    them, or too few samples to tell. Where all have the same, 0 is the other one.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    only = bool(((values == low) | (values == high)).all())
    return low, high - low if only and ((low, high) == (0, 1) or len(values) >= _REPEATED) else 0.0


def _wilson(share: float, count: int, low: float, apart: float) -> Interval:
    """Return the interval of a share of `count` samples, each of which counts `low`, or `apart` more."""
    squared = NORMAL_95**2 / count
    middle = (share + squared / 2) / (1 + squared)
    half = math.sqrt(squared * share * (1 - share) + squared**2 / 4) / (1 + squared)
    ends = (max(middle - half, 0.0), min(middle + half, 1.0))
    return Interval(*(low + apart * end for end in ends))


def mean_of(values: Tensor) -> Figure:
    """Return the mean of `[n]` values with its standard error."""
    return Figure(float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0)
