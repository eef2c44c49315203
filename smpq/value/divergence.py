"""How far a model's outputs are from those of the float model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.errors import UserError
from calib.task import Task

_TOKENS = 3


def divergence(output: Any, float_output: Any) -> Tensor:
    """Return `[n]`, the KL divergence of each sample's distribution from the float model's.

    Every floating-point tensor of the output counts, those of `[n]` where there are no others; classes are on axis 1,
    or on the last axis of `[n, tokens, classes]`; further positions are averaged. Of a single class softmax would say
    nothing: such numbers count as means of normal distributions of variance 1, half their squared difference. A task
    whose output is something else defines a `divergence` of its own.
    """
    pairs = [
        (ours, reference)
        for ours, reference in zip(pytree.tree_leaves(output), pytree.tree_leaves(float_output), strict=True)
        if isinstance(ours, Tensor) and ours.is_floating_point() and ours.dim()
    ]
    scores = [pair for pair in pairs if pair[0].dim() > 1]
    parts = []
    for ours, reference in scores or [(ours[:, None], reference[:, None]) for ours, reference in pairs]:
        axis = -1 if ours.dim() == _TOKENS else 1
        apart = _of_normals if ours.shape[axis] == 1 else functools.partial(_of_classes, axis=axis)
        parts.append(apart(ours, reference).flatten(1).mean(1))
    if not parts:
        raise UserError(
            "the model's output holds no numbers [n, ...] that could be compared with those of the float model: give "
            "the task a divergence(output, float_output)"
        )
    counts = {len(part) for part in parts}
    if len(counts) > 1:
        raise UserError(
            f"tensors of the model's output have {', '.join(map(str, sorted(counts)))} rows, so some have not one for "
            "each sample: put the samples first, or give the task a divergence(output, float_output)"
        )
    return torch.stack(parts).sum(0)


def _of_classes(ours: Tensor, reference: Tensor, axis: int) -> Tensor:
    log_p, log_q = F.log_softmax(reference, axis), F.log_softmax(ours, axis)
    return (log_p.exp() * (log_p - log_q)).sum(axis, keepdim=True)


def _of_normals(ours: Tensor, reference: Tensor) -> Tensor:
    return (ours - reference).square() / 2


class TaskDivergence:
    """A task's own divergence `[n]`, or the one above, and the one way to call it.

    `takes_target`: it has a third parameter `target`, and is given that of the batch. A class, so that it can be sent
    to another process with its task.
    """

    def __init__(self, task: Task) -> None:
        self._function: Callable[..., Tensor] = getattr(task, "divergence", divergence)
        self.takes_target = _takes_target(self._function)

    def __call__(self, output: Any, float_output: Any, target: Any) -> Tensor:
        """Return what the function returns, with its gradient. What it raises is the user's to see."""
        if self.takes_target:
            return self._function(output, float_output, target)
        return self._function(output, float_output)


def _takes_target(function: Callable[..., Any]) -> bool:
    try:
        return list(inspect.signature(function).parameters)[2:3] == ["target"]
    except (TypeError, ValueError):  # what is not written in Python has no signature
        return False
