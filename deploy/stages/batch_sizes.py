"""Whether an engine for any batch size computes the same for a sample alone as for the same sample among others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.errors import first_line
from calib.task import Batch

_SHORT = 3
_MOST = 64
_ALLOWED = 0.05
"""Kernels for one sample may sum in another order, and a value between two integers then falls to the other side."""


def differs_by_size(
    engine: Callable[[Batch], Any], reference: Callable[[Batch], Any], batch: Batch, sizes: Iterable[int]
) -> str | None:
    """Return in words at which batch size the engine is further from its reference than in the whole batch; None when
    at none.

    Both compute the first samples of `batch` in batches of 1, 3 and `sizes`, and the whole batch. The distance is the
    root mean square of the difference as a share of the spread of the reference. It may be twice that of the same
    samples in the whole batch, and 0.05 more.
    """
    count = len(batch.inputs[0])
    whole, expected = _floats(engine(batch)), _floats(reference(batch))
    for size in sorted({1, _SHORT, *sizes}):
        if size >= count or size > _MOST:
            continue
        part = Batch(tuple(tensor[:size] for tensor in batch.inputs), None)
        try:
            found = _floats(engine(part))
        except Exception as error:  # noqa: BLE001 - the exceptions of runtimes share no base class
            return f"the engine does not run with a batch of {size}: {first_line(error)}"
        wanted = _floats(reference(part))
        for index, (one, two) in enumerate(zip(found, wanted, strict=True)):
            if one.shape != two.shape:
                return (
                    f"with a batch of {size} output {index} has the shape {list(one.shape)} and not {list(two.shape)}"
                )
            spread = (
                float(expected[index].std(correction=0))
                if expected[index].numel() > 1
                else float(expected[index].abs().sum())
            )
            if one.numel() == 0 or spread == 0:
                continue
            counted = whole[index].dim() > 0 and len(whole[index]) == count
            usual = (
                _distance(whole[index][:size], expected[index][:size])
                if counted
                else _distance(whole[index], expected[index])
            )
            distance = _distance(one, two)
            if not distance <= 2 * usual + _ALLOWED * spread:
                return (
                    f"with a batch of {size} output {index} of the engine is {distance / spread:.2g} of its spread "
                    "away from the quantised "
                    f"model, and {usual / spread:.2g} for the same samples in a batch of {count}"
                )
    return None


def _floats(output: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf.double() for leaf in leaves if leaf.is_floating_point()]


def _distance(one: Tensor, two: Tensor) -> float:
    gap = one - two
    return math.sqrt(float(torch.mean(gap * gap))) if gap.numel() else 0.0
