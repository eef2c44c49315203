"""A metric of all samples together: the records of each, and the figure that the task makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calib.data import left_alone
from calib.errors import UserError
from calib.task import Batch, SetTask
from smpq.files import Interval
from smpq.value.collected import Collected, Figure
from smpq.value.loss import Loss
from smpq.value.resampling import FEWEST_GROUPS, Resampled, figure_of, replicates, standard_error

_UNDEFINED = 0.05
"""Share of the resamples without a figure from which on the others say little."""
_ROUNDING = 1e-9
"""A difference of this share of the figure is none."""


class SetCollected(Collected):
    """One record of each sample; the figure is what the task makes of all records.

    1. Standard errors are those of a bootstrap over groups of samples, or over samples where the task has no `groups`.
       Two models are given the same resamples, so that what both find hard cancels.
    2. Few samples without a change do not show that there are none. So `loss_to` adds to the variance what one group
       more that loses and one that gains would, as Bonett and Price (2012) do for paired proportions. Ours: how much a
       group can change the difference is measured, by the largest change when one of up to 100 blocks of groups is
       left out.
    3. Where no block changes the difference, a group counts with its share of the figure (of 1 where the figure is 0),
       or with what leaving out a block changes the figure itself by, divided by the square root of the groups in it.
    """

    early = False

    def __init__(self, task: SetTask) -> None:
        super().__init__()
        self._task = task
        self._pieces: dict[int, list[tuple[Any, Hashable]]] = {}
        self._known: dict[tuple[int, ...], Resampled] = {}

    def take(self, number: int, output: Any, batch: Batch) -> None:
        """Keep the records of a batch."""
        count = len(batch.inputs[0])
        with torch.no_grad():
            records = _of_each(self._task.records, (output, batch.target), count, "records")
        groups = _groups(self._task, batch) or [None] * count
        self._pieces[number], self.sizes[number] = list(zip(records, groups, strict=True)), count

    def resampled(self, numbers: tuple[int, ...]) -> Resampled:
        """Return the records of some batches, to be resampled."""
        if numbers not in self._known:
            records: list[Any] = []
            groups: dict[Hashable, list[int]] = {}
            for record, group in (pair for number in numbers for pair in self._pieces[number]):
                groups.setdefault(group if _named(self._task) else len(records), []).append(len(records))
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

    @property
    def is_share(self) -> bool:
        """Whether the figure lies between 0 and 1."""
        return 0 <= self.value <= 1

    @property
    def largest(self) -> float:
        """Of a share 1, else it is not known."""
        return 1.0 if self.is_share else 0.0

    def figure(self) -> Figure:
        """Return what the task makes of all records, with its standard error. The interval of a figure that is a share
        of all resamples too ends at 0 and at 1.
        """
        numbers = self._all()
        value, own = self.value_of(numbers), self.resampled(numbers)
        if len(own.groups) < 2:
            return Figure(value, abs(value) or 1.0)
        drawn = replicates([own])[0]
        found = Figure(value, standard_error(drawn, len(own.groups)))
        if not (0 <= value <= 1 and ((drawn >= 0) & (drawn <= 1)).all()):
            return found
        return replace(found, ends=Interval(max(found.interval.low, 0.0), min(found.interval.high, 1.0)))

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
        samples = sum(self.sizes[number] for number in numbers)
        error = math.hypot(
            change.standard_error, math.sqrt(2) * self._effect(later, numbers, change.value, largest * point)
        )
        return Loss(-change.value / point + 0.0, error / point, samples, complete)

    def _effect(self, later: SetCollected, numbers: tuple[int, ...], change: float, largest: float) -> float:
        """Return what one group may change the difference by at most; `largest` is known of one sample, or 0."""
        own, value = self.resampled(numbers), self.value_of(numbers)
        share = max(map(len, own.groups)) / sum(map(len, own.groups))
        if len(own.groups) < 2:
            return abs(value) or share
        without = own.without_blocks()
        effect = max(_largest(later.resampled(numbers).without_blocks() - without - change), largest * share)
        if effect > _ROUNDING * (abs(value) or 1.0):
            return effect
        usual = _largest(without - value) / math.sqrt(len(own.groups) / len(without))
        return max(usual, abs(value) * share) or share

    def doubt(self) -> str | None:
        """Say so where there are too few groups, or too few of what the figure needs."""
        own = self.resampled(self._all())
        few = _few(self._task, len(own.groups))
        if few is not None or len(own.groups) < 2:
            return few
        replicates([own])
        share = own.undefined
        if share < _UNDEFINED:
            return None
        return (
            f"{self._task.metric_name} is undefined on {share:.0%} of the resamples of {len(own.groups)} samples or "
            f"groups ({own.reason}): what it needs is rare among them, and its interval a guess. Give more of that"
        )


def _named(task: SetTask) -> bool:
    return getattr(task, "groups", None) is not None


def _groups(task: SetTask, batch: Batch) -> list[Hashable]:
    """Return the group of each sample of a batch; nothing where the task has no groups."""
    if not _named(task):
        return []
    names = _of_each(task.groups, (batch.target,), len(batch.inputs[0]), "groups")  # type: ignore[attr-defined]
    # equal tensors are different keys
    names = [name.item() if isinstance(name, Tensor) and name.numel() == 1 else name for name in names]
    for name in names:
        if isinstance(name, Tensor) or not _is_key(name):
            raise UserError(f"the task's groups() must return numbers or strings, not {type(name).__name__}")
    return names


def _is_key(name: object) -> bool:
    try:
        hash(name)
    except TypeError:
        return False
    return True


def _few(task: SetTask, count: int) -> str | None:
    if count >= FEWEST_GROUPS:
        return None
    kind = "groups" if _named(task) else "samples"
    return (
        f"the interval of {task.metric_name} cannot be told from {count} {kind}: give data with {FEWEST_GROUPS} or more"
    )


def _of_each(function: Callable[..., Any], arguments: Sequence[Any], count: int, what: str) -> list[Any]:
    """Return the `count` objects that a task's function gives for a batch."""
    try:
        with left_alone(arguments, what):
            found = function(*arguments)
        each = None if isinstance(found, Mapping | str) else list(found)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the task's {what}() failed: {type(error).__name__}: {error}") from error
    if each is None or len(each) != count:
        given = type(found).__name__ if each is None else len(each)
        raise UserError(f"the task's {what}() must return one object per sample, {count}, not {given}")
    return each


def _largest(changes: Any) -> float:
    """Return the largest size of changes, of those that are numbers; 0 where none is."""
    sizes = np.abs(changes)
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))
