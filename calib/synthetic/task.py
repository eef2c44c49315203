"""A task without its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from calib.task import Batch, Task

_KEPT = (
    "name", "metric_name", "metric_point", "model", "evaluation", "metric", "loss", "records", "metric_of", "groups",
    "confidences", "divergence",
)  # fmt: skip


class _DataFree:
    """What is left of a task. Protocols look at the names that an object has, so what it lacks is not set."""

    def __init__(self, task: Task, batches: Sequence[Batch]) -> None:
        self._batches = list(batches)
        self.__dict__.update({name: getattr(task, name) for name in _KEPT if hasattr(task, name)})

    def calibration(self) -> list[Batch]:
        """Return the synthetic batches."""
        return self._batches


def data_free(task: Task, batches: Sequence[Batch]) -> Task:
    """Return the task with synthetic batches for its calibration data, and with neither `selection` nor `training`: no
    sample of it can be reached but those of `evaluation`.
    """
    return cast("Task", _DataFree(task, batches))
