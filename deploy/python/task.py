"""A model and data that are in memory, as a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.task import Batch
from smpq.value.value import divergence

Metric = Callable[[Any, Any], Tensor]
Training = Iterable[Any] | Callable[[int], Iterable[Any]]
"""Batches that are looped over in each epoch, or what gives those of an epoch."""
Records = Callable[[Any, Any], Sequence[Any]]
Groups = Callable[[Any], Sequence[Hashable]]


@dataclass(frozen=True)
class SetMetric:
    """A metric of all samples together, as `calib.task.SetTask` has it."""

    records: Records
    metric_of: Callable[[Sequence[Any]], Any]
    groups: Groups | None = None


class TaskInMemory:
    """What `optimize` is given. Batches are taken from their iterables once, so that a loader may shuffle; those of the
    training data in each epoch.
    """

    selection: Callable[[], list[Batch]]
    """Held-out batches that decide about a budget on the loss; missing where none are given."""
    training: Callable[[int], Iterator[Batch]]
    """One pass over the training data; missing where none are given."""
    records: Records
    """One record of each sample, of which `metric_of` makes the metric; both are missing where none are given."""
    metric_of: Callable[[Sequence[Any]], Any]
    groups: Groups
    """The group of each sample; missing where none are given."""
    divergence: Metric
    """How far outputs are from those of the float model; missing where none is given (`smpq.value.value`)."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        calibration: Iterable[Any],
        evaluation: Iterable[Any],
        metric: Metric | None,
        selection: Iterable[Any] | None = None,
        training: Training | None = None,
        loss: Metric | None = None,
        whole: SetMetric | None = None,
        divergence: Metric | None = None,
    ) -> None:
        """Without a metric of samples, or of the whole set, the model's own outputs are the targets, and minus the
        divergence from them is the metric.
        """
        self.name = name
        self._model = model.eval()
        self._metric, self._loss = metric, loss
        if divergence is not None:
            self.divergence = divergence
        self._labelled = metric is not None or whole is not None
        self.metric_name = getattr(metric, "__name__", "metric") if self._labelled else "minus the divergence"
        if whole is not None:
            self.metric_name = getattr(whole.metric_of, "__name__", "metric")
            self.records, self.metric_of = whole.records, whole.metric_of
            if whole.groups is not None:
                self.groups = whole.groups
        self._calibration = self._taken(calibration, "calibration")
        self._evaluation = self._taken(evaluation, "evaluation")
        if selection is not None:
            selected = self._taken(selection, "selection")
            self.selection = lambda: selected
        if training is not None:
            passes = _passes(training)
            self.training = lambda epoch: map(self._with_target, each_batch(passes(epoch), self._model, "training"))

    def _taken(self, batches: Iterable[Any], what: str) -> list[Batch]:
        return [self._with_target(batch) for batch in batches_of(batches, self._model, what)]

    def _with_target(self, batch: Batch) -> Batch:
        if self._labelled:
            return batch
        with torch.no_grad():
            return Batch(batch.inputs, self._model(*batch.inputs))

    def model(self) -> nn.Module:
        """Return the model."""
        return self._model

    def calibration(self) -> list[Batch]:
        """Return the calibration batches."""
        return self._calibration

    def evaluation(self) -> list[Batch]:
        """Return the evaluation batches."""
        return self._evaluation

    def metric(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`, higher is better."""
        if self._metric is not None:
            return self._metric(output, target)
        return -getattr(self, "divergence", divergence)(output, target)

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`, minus the metric unless a loss was given. UserError where there is neither."""
        if self._loss is None and self._metric is None and self._labelled:
            raise UserError("a metric of the whole set is no loss of each sample: give loss=, or do without it")
        return self._loss(output, target) if self._loss is not None else -self.metric(output, target)


def _passes(training: Training) -> Callable[[int], Iterable[Any]]:
    """Return what gives one pass. What can be looped over only once is kept."""
    if callable(training):
        return training
    batches = list(training) if isinstance(training, Iterator) else training
    return lambda _: batches


def batches_of(batches: Iterable[Any], model: nn.Module, what: str) -> list[Batch]:
    """Return batches as the search takes them. UserError for what is none.

    A tensor is the only input. The last of a tuple or list is the target, what stands before it the inputs. Of a dict
    the model gets the arguments of its `forward`; what is left is the target, alone or as a dict.
    """
    found = list(each_batch(batches, model, what))
    if not found:
        raise UserError(f"{what} has no batches")
    return found


def each_batch(batches: Iterable[Any], model: nn.Module, what: str) -> Iterator[Batch]:
    """Yield batches as the search takes them, as `batches_of`; there may be none."""
    try:
        for batch in batches:
            yield _batch(batch, model)
    except TypeError as error:
        raise UserError(f"{what} cannot be used as batches ({error}): give a list of them, or a DataLoader") from error


def _batch(batch: Any, model: nn.Module) -> Batch:
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Tensor):
        return Batch((batch,), None)
    if isinstance(batch, Mapping):
        names = [name for name in inspect.signature(model.forward).parameters if name in batch]
        rest = {name: value for name, value in batch.items() if name not in names}
        target = next(iter(rest.values())) if len(rest) == 1 else rest or None
        return Batch(tuple(batch[name] for name in names), target)
    if isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        *inputs, target = batch
        if not inputs:
            return Batch((target,), None)
        first = inputs[0]
        nested = len(inputs) == 1 and isinstance(first, Sequence) and not isinstance(first, Tensor)
        return Batch(tuple(first) if nested else tuple(inputs), target)
    raise TypeError(f"a batch is of type {type(batch).__name__}")
