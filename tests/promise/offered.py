"""The task through which the tool is given a generated network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.task import Batch

_OFFERED: list[Offer] = []


class Offer:
    """A network with calibration and evaluation data; every call hands out a copy of its own."""

    name = "generated"
    metric_name = "mean output"

    def __init__(
        self, module: nn.Module, calibration: list[tuple[Tensor, ...]], evaluation: list[tuple[Tensor, ...]]
    ) -> None:
        self._module, self._calibration, self._evaluation = module, calibration, evaluation

    def model(self) -> nn.Module:
        return copy.deepcopy(self._module)

    def calibration(self) -> list[Batch]:
        return [_batch(inputs) for inputs in self._calibration]

    def evaluation(self) -> list[Batch]:
        return [_batch(inputs) for inputs in self._evaluation]

    def metric(self, output: Any, target: Tensor) -> Tensor:
        """Minus the mean square of the first output that has a row for each sample; zero where none has."""
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == len(target) and not leaf.is_complex():
                rows = leaf.detach().double().reshape(len(target), -1)
                return -rows.square().mean(1).log1p() if rows.shape[1] else torch.zeros(len(target))
        return torch.zeros(len(target))

    def loss(self, output: Any, target: Tensor) -> Tensor:
        return -self.metric(output, target)


def offer(task: Offer) -> str:
    """Make a task the one that `--task` finds, and return what to write there."""
    _OFFERED[:] = [task]
    return f"{__name__}:current"


def current(data: object, weights: object) -> Offer:
    """Called by the tool."""
    return _OFFERED[0]


def _batch(inputs: tuple[Tensor, ...]) -> Batch:
    copies = tuple(
        tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_(tensor.requires_grad)
        for tensor in inputs
    )
    return Batch(copies, torch.arange(len(inputs[0])))
