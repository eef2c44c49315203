"""What a metric keeps of the samples that went through a model, and the figure that they come to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calib.task import Batch
from smpq.files import Interval
from smpq.value.column import Column
from smpq.value.loss import Loss, loss_of


@dataclass(frozen=True)
class Figure:
    """A figure, or the change of one, with its standard error."""

    value: float
    standard_error: float

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        return Interval.around(self.value, self.standard_error)


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

    @abstractmethod
    def figure(self) -> Figure:
        """Return the figure with its standard error."""

    @abstractmethod
    def change_to(self, later: Any) -> Figure:
        """Return by how much the figure changes to another model's, over the samples of both."""

    @abstractmethod
    def loss_to(self, later: Any, point: float, largest: float, *, complete: bool = True) -> Loss:
        """Return what is lost against another model's, in points. Few samples without a change show no zero; `largest`
        is how many points one sample of a mean can lose, 0 where that is not known.
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

    def figure(self) -> Figure:
        """Return the mean with its standard error."""
        return mean_of(self.values_of(sorted(self.sizes)))

    def change_to(self, later: MeanCollected) -> Figure:
        """Return the mean of the paired differences."""
        shared = self._shared(later)
        return mean_of(later.values_of(shared) - self.values_of(shared))

    def loss_to(self, later: MeanCollected, point: float, largest: float, *, complete: bool = True) -> Loss:
        """See `smpq.value.loss.loss_of`."""
        shared = self._shared(later)
        return loss_of((self.values_of(shared) - later.values_of(shared)) / point, largest, complete=complete)

    def doubt(self) -> None:
        """Return None."""


def mean_of(values: Tensor) -> Figure:
    """Return the mean of `[n]` values with its standard error."""
    return Figure(float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0)
