"""What the tool is given: a model, data and a metric, behind one small protocol."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Batch(NamedTuple):
    """One batch: the model's positional inputs, each `[n, ...]`, and the target, any object that `metric`
    understands.
    """

    inputs: tuple[Tensor, ...]
    target: Any


@runtime_checkable
class Task(Protocol):
    """A model, calibration batches, evaluation batches and a metric.

    1. `calibration` batches drive the whole search. `evaluation` batches are only ever used to verify the result.
    2. `metric` returns one value per sample, higher is better; their mean is the figure that is reported, and their
       spread is its interval. Top-1 accuracy returns 0 or 1.
    3. `loss` also returns one value per sample, lower is better. It is used when the search runs with `--value loss`.
    4. `output` is whatever the model's `forward` returns.
    5. Iterating `calibration` or `evaluation` twice gives the same batches.
    6. Optional: `selection() -> Iterable[Batch]`, held-out batches with targets that are not those of `evaluation`. A
       budget on the loss (`drop=0.5`) is decided on them, else on the calibration batches.
    7. Optional: `metric_point: float`, how much of the metric is one point. Without it a point is 0.01 of top-1, top-5
       and accuracy, and 1 of any other metric.
    """

    name: str
    metric_name: str

    def model(self) -> nn.Module:
        """Return the trained float model in eval mode."""
        ...

    def calibration(self) -> Iterable[Batch]:
        """Return batches of the training distribution, a few hundred samples or more."""
        ...

    def evaluation(self) -> Iterable[Batch]:
        """Return the held-out batches."""
        ...

    def metric(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`, one value per sample, higher is better."""
        ...

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`, one value per sample, lower is better."""
        ...


@runtime_checkable
class TrainableTask(Task, Protocol):
    """A task that can also be trained on: what `smpq finetune` needs."""

    def training(self, epoch: int) -> Iterable[Batch]:
        """Return one pass over the training data; order and augmentation depend on `epoch` alone.

        No sample of `calibration()` is among them: whoever trains judges the result on samples that were not trained
        on.
        """
        ...


class TaskFactory(Protocol):
    """What `--task` names: called with the paths given on the command line, returns the task."""

    def __call__(self, data: Path | None, weights: Path | None) -> Task:
        """Build the task; raise UserError when a path it needs is missing or wrong."""
        ...
