"""The float model's outputs on the batches that policies are judged on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from calib.task import Batch


class FloatOutputs:
    """Outputs by batch, each computed once as long as those that are kept take at most `most_bytes`, else each time."""

    def __init__(self, run: Callable[[Batch], Any], most_bytes: float) -> None:
        self._run = run
        self._left = most_bytes
        self._kept: dict[int, tuple[Batch, Any]] = {}

    def __call__(self, batch: Batch) -> Any:
        """Return the output on a batch, which is known by being the same object."""
        if id(batch) in self._kept:
            return self._kept[id(batch)][1]
        output = self._run(batch)
        needed = sum(leaf.nbytes for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
        if needed <= self._left:
            self._left -= needed
            self._kept[id(batch)] = batch, output
        return output
