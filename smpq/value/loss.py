"""A loss in the mean of samples, with its interval, and the point that it is counted in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from calib.errors import UserError
from calib.task import Task
from smpq.files import SHARES

NORMAL_95 = 1.96


@dataclass(frozen=True)
class Loss:
    """What a policy loses against the float model in the mean of `samples`, paired, in the unit of the limit.

    `standard_error` is that of the mean. `complete` is False where the verdict was clear before all samples were seen.
    """

    mean: float
    standard_error: float
    samples: int
    complete: bool = True

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        return self.mean - NORMAL_95 * self.standard_error, self.mean + NORMAL_95 * self.standard_error

    def within(self, limit: float) -> bool:
        """Whether the upper end of the interval is within the limit."""
        return self.interval[1] <= limit

    def samples_needed(self, limit: float) -> int | None:
        """How many samples would show that this mean is within the limit; None where it is not."""
        if self.mean >= limit:
            return None
        deviation = self.standard_error * math.sqrt(self.samples)
        return math.ceil((NORMAL_95 * deviation / (limit - self.mean)) ** 2)


def loss_of(differences: Tensor, largest: float = 0.0, *, complete: bool = True) -> Loss:
    """Return the mean of paired differences `[n]` with its standard error.

    The error is that of the adjusted Wald interval for paired proportions (Bonett and Price 2012): two samples more,
    one that loses and one that gains as much as one sample can (`largest`), or as the largest difference seen, or 1
    where none is. Few samples without a change do not show that there are none. For metrics that are no shares the same
    rule is ours.
    """
    count = len(differences)
    values = differences.double()
    most = max(float(values.abs().max()), largest) or 1.0
    mean = float(values.mean())
    wider = torch.cat([values, values.new_tensor([most, -most])])
    error = float(wider.std(correction=0)) / math.sqrt(count + 2)
    return Loss(mean, error, count, complete)


def stated_point(task: Task) -> float | None:
    """Return how much of a task's metric is one point: `metric_point` of the task, 0.01 for metrics that are named as
    shares, None where neither says so.
    """
    found = getattr(task, "metric_point", None)
    if found is None:
        return 0.01 if task.metric_name in SHARES else None
    if not isinstance(found, (int, float)) or not 0 < found < math.inf:
        raise UserError(f"the task's metric_point is {found!r}: it must be a number above zero")
    return float(found)
