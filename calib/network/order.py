"""In which order the axes of images lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.network.execution import Edits, ordered

if TYPE_CHECKING:
    from calib.network.graph import TracedModel


def fastest_order(traced: TracedModel, inputs: Sequence[Tensor]) -> torch.memory_format:
    """Return the order in which convolutions on a CPU need not rearrange what they read and write: channels last.

    That of inputs and weights is handed on from operator to operator. It stays the usual one where the graph has no
    convolution of images, fails on the other one, or computes something else in it (`view` and `as_strided` look at the
    memory).
    """
    found = torch.channels_last
    if not any("conv2d" in str(node.target) for node in traced.steps):
        return torch.contiguous_format
    expected = pytree.tree_leaves(traced.run(inputs))
    edits = Edits(parameters={name: ordered(tensor, found) for name, tensor in traced.state.items()})
    try:
        given = pytree.tree_leaves(traced.run(inputs, edits, order=found))
    except RuntimeError:
        return torch.contiguous_format
    same = all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        for a, b in zip(expected, given, strict=True)
        if isinstance(a, Tensor)
    )
    return found if same else torch.contiguous_format


def order_of(tensor: Tensor) -> torch.memory_format:
    """Return the order that a tensor has: channels last for images in it, else the usual one."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
