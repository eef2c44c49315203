"""A task's metric: what is kept of the samples that went through a model, and the figure that they come to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from calib.data import per_sample
from calib.errors import UserError
from calib.task import Batch, SetTask, Task
from smpq.files import Interval
from smpq.value.loss import Loss, loss_of
from smpq.value.resampling import FEWEST_GROUPS, Resampled, figure_of, replicates, standard_error

_Piece = TypeVar("_Piece")


@dataclass(frozen=True)
class Figure:
    """A figure, or the change of one, with its standard error."""

    value: float
    standard_error: float

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        return Interval.around(self.value, self.standard_error)


class Collected(ABC, Generic[_Piece]):
    """What a metric keeps of the batches that went through one model.

    Batches are numbered, and count in the order of their numbers. Two of these are compared over the batches of both,
    sample by sample: they are given the same data.
    """

    early: bool
    """Whether a part of the samples says what all of them will."""

    def __init__(self) -> None:
        self._pieces: dict[int, _Piece] = {}
        self.sizes: dict[int, int] = {}

    @property
    def batches(self) -> int:
        """How many batches it has."""
        return len(self.sizes)

    @property
    def samples(self) -> int:
        """How many samples it has."""
        return sum(self.sizes.values())

    def take(self, number: int, output: Any, batch: Batch) -> None:
        """Keep of a model's output what the metric needs. UserError where the task's functions do not work."""
        self._keep(number, self._piece(output, batch), len(batch.inputs[0]))

    def _keep(self, number: int, piece: _Piece, size: int) -> None:
        self._pieces[number], self.sizes[number] = piece, size

    def _shared(self, other: Collected[Any]) -> tuple[int, ...]:
        return tuple(sorted(self.sizes.keys() & other.sizes.keys()))

    @property
    @abstractmethod
    def value(self) -> float:
        """The figure."""

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

    @abstractmethod
    def _piece(self, output: Any, batch: Batch) -> _Piece: ...


class MeanCollected(Collected[Tensor]):
    """One value of each sample; the figure is their mean."""

    early = True

    def __init__(self, measure: Callable[[Any, Batch], Tensor]) -> None:
        """`measure` gives the `[n]` values of a model's output on a batch."""
        super().__init__()
        self._measure = measure

    def add(self, number: int, values: Tensor) -> None:
        """Keep the `[n]` values of a batch."""
        self._keep(number, values, len(values))

    def _piece(self, output: Any, batch: Batch) -> Tensor:
        return self._measure(output, batch)

    def values_of(self, numbers: Sequence[int]) -> Tensor:
        """Return the values of some batches."""
        return torch.cat([self._pieces[number] for number in numbers])

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.values_of(sorted(self._pieces)).mean())

    def figure(self) -> Figure:
        """Return the mean with its standard error."""
        return _mean(self.values_of(sorted(self._pieces)))

    def change_to(self, later: MeanCollected) -> Figure:
        """Return the mean of the paired differences."""
        shared = self._shared(later)
        return _mean(later.values_of(shared) - self.values_of(shared))

    def loss_to(self, later: MeanCollected, point: float, largest: float, *, complete: bool = True) -> Loss:
        """See `smpq.value.loss.loss_of`."""
        shared = self._shared(later)
        return loss_of((self.values_of(shared) - later.values_of(shared)) / point, largest, complete=complete)

    def doubt(self) -> None:
        """Return None."""


class SetCollected(Collected[list[tuple[Any, Hashable]]]):
    """One record of each sample; the figure is what the task makes of all records.

    1. Standard errors are those of a bootstrap over groups of samples, or over samples where the task has no `groups`.
       Two models are given the same resamples, so that what both find hard cancels.
    2. `loss_to` adds what one group more that loses and one that gains would change, as Bonett and Price do for paired
       proportions (2012; that it serves other figures is ours). How much that is, is measured: the largest change of
       the difference when a group is left out. Where no record makes a difference it is the largest change of the
       figure itself, or the group's share of it. A group counts with its block, one of 100.
    """

    early = False

    def __init__(self, task: SetTask) -> None:
        super().__init__()
        self._task = task
        self._known: dict[tuple[int, ...], Resampled] = {}

    def _piece(self, output: Any, batch: Batch) -> list[tuple[Any, Hashable]]:
        count = len(batch.inputs[0])
        with torch.no_grad():
            records = _of_each(self._task.records, (output, batch.target), count, "records")
        names = getattr(self._task, "groups", None)
        groups = [None] * count if names is None else _of_each(names, (batch.target,), count, "groups")
        return list(zip(records, groups, strict=True))

    def resampled(self, numbers: tuple[int, ...]) -> Resampled:
        """Return the records of some batches, to be resampled."""
        if numbers not in self._known:
            records: list[Any] = []
            groups: dict[Hashable, list[int]] = {}
            named = getattr(self._task, "groups", None) is not None
            for record, group in (pair for number in numbers for pair in self._pieces[number]):
                groups.setdefault(group if named else len(records), []).append(len(records))
                records.append(record)
            self._known[numbers] = Resampled(self._task.metric_of, records, list(groups.values()))
        return self._known[numbers]

    def _all(self) -> tuple[int, ...]:
        return tuple(sorted(self._pieces))

    def value_of(self, numbers: tuple[int, ...]) -> float:
        """Return what the task makes of the records of some batches."""
        return figure_of(self._task.metric_of, [pair[0] for number in numbers for pair in self._pieces[number]])

    @property
    def value(self) -> float:
        """What the task makes of all records."""
        return self.value_of(self._all())

    def figure(self) -> Figure:
        """Return what the task makes of all records, with its standard error."""
        numbers = self._all()
        value, own = self.value_of(numbers), self.resampled(numbers)
        if len(own.groups) < 2:
            return Figure(value, abs(value) or 1.0)
        return Figure(value, standard_error(replicates([own])[0], len(own.groups)))

    def change_to(self, later: SetCollected) -> Figure:
        """Return the difference of the figures over the samples of both, with its standard error."""
        numbers = self._shared(later)
        before, after = self.value_of(numbers), later.value_of(numbers)
        sides = [self.resampled(numbers), later.resampled(numbers)]
        if len(sides[0].groups) < 2:
            return Figure(after - before, max(abs(before), abs(after)) or 1.0)
        drawn = replicates(sides)
        return Figure(after - before, standard_error(drawn[1] - drawn[0], len(sides[0].groups)))

    def loss_to(self, later: SetCollected, point: float, largest: float, *, complete: bool = True) -> Loss:
        """Return what is lost; see the class."""
        numbers, change = self._shared(later), self.change_to(later)
        own, other, value = self.resampled(numbers), later.resampled(numbers), self.value_of(numbers)
        most = max(map(len, own.groups)) / sum(map(len, own.groups))  # a group's share of the samples
        without = own.without_blocks()
        effect = max(_largest(other.without_blocks() - without - change.value), largest * point * most)
        if effect == 0:
            effect = max(_largest(without - value), abs(value) * most) or point * most
        error = math.hypot(change.standard_error, math.sqrt(2) * effect)
        return Loss(-change.value / point + 0.0, error / point, sum(self.sizes[n] for n in numbers), complete)

    def doubt(self) -> str | None:
        """Say so where there are too few groups."""
        count = len(self.resampled(self._all()).groups)
        if count >= FEWEST_GROUPS:
            return None
        kind = "samples" if getattr(self._task, "groups", None) is None else "groups"
        return (
            f"the interval of {self._task.metric_name} cannot be told from {count} {kind}: give data with "
            f"{FEWEST_GROUPS} {kind} or more"
        )


def collected(task: Task) -> Collected[Any]:
    """Return what is to keep outputs of a model, and keeps nothing yet, for the metric of a task."""
    if isinstance(task, SetTask):
        return SetCollected(task)
    metric = sample_metric(task, "a mean")
    return MeanCollected(
        lambda output, batch: per_sample(metric, (output, batch.target), len(batch.inputs[0]), "metric")
    )


def sample_metric(task: Task, what: str) -> Callable[[Any, Any], Tensor]:
    """Return the metric of a task that gives one value for each sample. UserError where it gives none; `what` needs
    it.
    """
    metric: Callable[[Any, Any], Tensor] | None = getattr(task, "metric", None)
    if isinstance(task, SetTask) or metric is None:
        raise UserError(
            f"{what} needs a value of each sample, and {task.metric_name} of the task {task.name} is a figure of all "
            "samples together (metric_of): use kl or loss"
        )
    return metric


def _of_each(function: Callable[..., Any], arguments: Sequence[Any], count: int, what: str) -> list[Any]:
    """Return the `count` objects that a task's function gives for a batch."""
    try:
        found = list(function(*arguments))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the task's {what}() failed: {type(error).__name__}: {error}") from error
    if len(found) != count:
        raise UserError(f"the task's {what}() must return one object per sample, {count}, not {len(found)}")
    return found


def _mean(values: Tensor) -> Figure:
    return Figure(float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0)


def _largest(changes: Any) -> float:
    """Return the largest size of changes, of those that are numbers; 0 where none is."""
    sizes = np.abs(changes)
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))
