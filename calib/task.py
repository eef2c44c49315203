"""What the tool is given: a model, data and a metric, behind one small protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Batch(NamedTuple):
    """One batch: the model's positional inputs, each `[n, ...]`, and the target, any object that the metric
    understands.
    """

    inputs: tuple[Tensor, ...]
    target: Any


@runtime_checkable
class Task(Protocol):
    """A model, calibration batches, evaluation batches and a metric: that of a `SampleTask` or of a `SetTask`.

    1. `calibration` batches drive the whole search. `evaluation` batches are only ever used to verify the result.
    2. `loss` returns one value per sample, lower is better. It is used when the search runs with `--value loss`.
    3. `output` is whatever the model's `forward` returns.
    4. Iterating `calibration` or `evaluation` twice gives the same batches.
    5. Optional: `selection() -> Iterable[Batch]`, held-out batches with targets that are not those of `evaluation`. A
       budget on the loss (`drop=0.5`) is decided on them, else on the calibration batches.
    6. Optional: `metric_point: float`, how much of the metric is one point. Without it a point is 0.01 of top-1, top-5
       and accuracy, and of any other metric that lies between 0 and 1 for the float model; 1 of others.
    7. Optional: `divergence(output, float_output) -> Tensor`, `[n]`, how far outputs are from the float model's. With a
       third parameter `target=None` it is given the batch's target where there is one, to leave out what is padding.
    8. Optional: `confidences(output) -> Tensor`, `[n]`, how sure the model is of each sample, 0 to 1: for a detector
       the
       score of the best box. `smpq verify` shows how they moved. Without it they are the highest probabilities, where
       the targets are class labels.
    9. Optional: `example_inputs() -> Tensor | tuple[Tensor, ...]`, inputs of the right shape and type, `[n, ...]` each,
       for a run with `--data-free`. Of integers it gives the range, of floats mean and standard deviation, unless all
       are the same: where these are not known it gives zeros. Such a run calls neither `calibration` nor `selection`
       nor `training`. `evaluation` may return None there: nothing is verified then.
    """

    name: str
    metric_name: str

    def model(self) -> nn.Module:
        """Return the trained float model in eval mode."""
        ...

    def calibration(self) -> Iterable[Batch]:
        """Return batches of the training distribution, a few hundred samples or more."""
        ...

    def evaluation(self) -> Iterable[Batch] | None:
        """Return the held-out batches; None only where `--data-free` does without."""
        ...

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`, one value per sample, lower is better."""
        ...


@runtime_checkable
class SampleTask(Task, Protocol):
    """A task whose figure is the mean of one value per sample; their spread is its interval. Top-1 accuracy is the mean
    of 0 and 1.
    """

    def metric(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`, one value per sample, higher is better."""
        ...


@runtime_checkable
class SetTask(Task, Protocol):
    """A task whose figure is that of all samples together: average precision, AUC, mean IoU, perplexity, word error
    rate.

    1. A record holds what the figure needs of one sample, and should be small: those of the evaluation data are kept in
       memory. For a detector it is the kept boxes and the true ones, for a corpus the nats and the tokens.
    2. The interval is that of a bootstrap over the samples, which calls `metric_of` 200 times for each stage. A budget
       on the loss calls it 300 times for each plan. What costs time belongs into `records`.
    3. `metric_of` returns NaN, or raises ValueError, where the figure is undefined, as AUC is on samples of one class.
    4. Optional: `groups(target) -> Sequence[Hashable]`, the name of each sample's group (a document, a patient).
       Samples
       of one group are drawn together, since they are alike.
    5. A `metric` is not needed, and not used.
    """

    def records(self, output: Any, target: Any) -> Sequence[Any]:
        """Return `n` objects, one per sample."""
        ...

    def metric_of(self, records: Sequence[Any]) -> float:
        """Return the figure of some records, higher is better."""
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


def judges_of(task: Task) -> list[Any]:
    """Return the functions of a task that say what outputs are worth, None where it has none."""
    return [getattr(task, name, None) for name in ("metric", "loss", "divergence", "records", "metric_of", "groups")]


class TaskFactory(Protocol):
    """What `--task` names: called with the paths given on the command line, returns the task."""

    def __call__(self, data: Path | None, weights: Path | None) -> Task:
        """Build the task; raise UserError when a path it needs is missing or wrong."""
        ...
