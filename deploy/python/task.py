"""A model and data that are in memory, as a task."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.batches import content_hash
from calib.data import check_finite, check_model
from calib.errors import UserError
from calib.network.modules import writable
from calib.task import Batch
from deploy.python.arguments import Arguments
from smpq.value.divergence import divergence

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
    """How far outputs are from those of the float model; missing where none is given (`smpq.value.divergence`)."""
    metric_point: float
    """How much of the metric is a point; missing where that is not given."""

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
        metric_point: float | None = None,
    ) -> None:
        """Without a metric of samples, or of the whole set, the model's own outputs are the targets, and minus the
        divergence from them is the metric.
        """
        self.name = name
        self._model = writable(check_model(model)).eval()
        self._metric, self._loss = metric, loss
        if divergence is not None:
            self.divergence = divergence
        if metric_point is not None:
            self.metric_point = metric_point
        self._labelled = metric is not None or whole is not None
        self.metric_name = _name_of(metric) if self._labelled else "minus the divergence"
        if whole is not None:
            self.metric_name = _name_of(whole.metric_of)
            self.records, self.metric_of = whole.records, whole.metric_of
            if whole.groups is not None:
                self.groups = whole.groups
        self._arguments = Arguments(self._model)
        self._calibration = self._taken(calibration, "calibration")
        self._evaluation = self._taken(evaluation, "evaluation")
        if selection is not None:
            selected = self._taken(selection, "selection")
            self.selection = lambda: selected
        if training is not None:
            passes = _passes(training)
            self.training = lambda epoch: map(self._with_target, self._arguments.batches(passes(epoch), "training"))

    def _taken(self, batches: Iterable[Any], what: str) -> list[Batch]:
        taken = self._arguments.batches(batches, what)
        if not isinstance(batches, Sequence):  # a loader may write its next batch over the one before
            taken = map(_copied, taken)
        found = [self._with_target(batch) for batch in taken]
        if not found:
            raise UserError(f"{what} has no batches")
        return found

    def _with_target(self, batch: Batch) -> Batch:
        if self._labelled:
            return batch
        try:
            with torch.no_grad():
                # of copies: a model may work on its inputs in place
                output = self.model()(*(tensor.clone() for tensor in batch.inputs))
        except Exception as error:
            raise UserError(f"the model does not run with a batch: {type(error).__name__}: {error}") from error
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor):
                check_finite(leaf, "what the model gives for a batch")
        return Batch(batch.inputs, output)

    @property
    def input_names(self) -> list[str]:
        """The names that `forward` has for the inputs of a batch."""
        return self._arguments.names(len(self._calibration[0].inputs))

    def is_in_calibration(self, batch: Batch) -> bool:
        """Whether calibration holds every sample of a batch."""
        return _marks(batch) <= {mark for each in self._calibration for mark in _marks(each)}

    def model(self) -> nn.Module:
        """Return the model, which takes the inputs of a batch by position."""
        return self._arguments.model

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


def _copied(batch: Any) -> Any:
    """Return a batch with tensors and arrays of its own."""
    kinds = (Tensor, np.ndarray)
    return pytree.tree_map_only(kinds, lambda x: x.detach().clone() if isinstance(x, Tensor) else x.copy(), batch)


def _marks(batch: Batch) -> set[str]:
    """Return a hash of the inputs of each sample."""
    samples = zip(*batch.inputs, strict=True)
    return {content_hash([Batch(tuple(sample), None)]) for sample in samples}


def _name_of(metric: Callable[..., Any] | None) -> str:
    name = getattr(metric, "__name__", "metric")
    return name if name.isidentifier() else "metric"  # that of a lambda says nothing


def _passes(training: Training) -> Callable[[int], Iterable[Any]]:
    """Return what gives one pass. What can be looped over only once is kept."""
    if callable(training):
        return training
    batches = list(map(_copied, training)) if isinstance(training, Iterator) else training
    return lambda _: batches
