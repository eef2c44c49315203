"""Tensors of a training that is written down and gone on with."""

from __future__ import annotations

from torch import Tensor


def copied(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, as it is written."""
    return tensor.detach().cpu().clone().contiguous()


def alike(found: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor that was read can take the place of another."""
    return found.shape == wanted.shape and found.dtype == wanted.dtype
