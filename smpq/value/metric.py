"""What a task's metric is: the mean of one value of each sample, or a figure of all samples together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from calib.data import per_sample
from calib.errors import UserError
from calib.task import SetTask, Task
from smpq.value.collected import Collected, MeanCollected
from smpq.value.set_metric import SetCollected


def collected(task: Task) -> Collected:
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
