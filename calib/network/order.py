"""In which order the axes of images lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.errors import UserError
from calib.network.execution import Edits, ordered

if TYPE_CHECKING:
    from calib.network.graph import TracedModel


def fastest_order(traced: TracedModel, inputs: Sequence[Tensor]) -> torch.memory_format:
    """Return the order in which convolutions on a CPU need not rearrange what they read and write: channels last.

    That of inputs and weights is handed on from operator to operator. It stays the usual one where the graph has no
    convolution of images, fails on the other one, or computes something else in it (`view` and `as_strided` look at the
    memory).
    """
    if not convolves(traced):
        return torch.contiguous_format
    found = torch.channels_last
    edits = Edits(parameters={name: ordered(tensor, found) for name, tensor in traced.state.items()})
    return _borne(lambda: traced.run(inputs), lambda: traced.run(inputs, edits, order=found))


def convolves(traced: TracedModel) -> bool:
    """Whether a graph has convolutions of images."""
    return any("conv2d" in str(node.target) for node in traced.steps)


def order_borne_by(module: Callable[[Sequence[Tensor]], Any], inputs: Sequence[Tensor]) -> torch.memory_format:
    """Return channels last where a module computes the same of inputs in that order, else the usual one."""
    return _borne(lambda: module(inputs), lambda: module([ordered(each, torch.channels_last) for each in inputs]))


def _borne(usual: Callable[[], Any], other: Callable[[], Any]) -> torch.memory_format:
    """Return channels last where `other`, which computes in it, gives what `usual` gives."""
    try:
        expected, given = pytree.tree_leaves(usual()), pytree.tree_leaves(other())
    except (RuntimeError, UserError):
        return torch.contiguous_format
    same = len(expected) == len(given) and all(
        _alike(a, b) for a, b in zip(expected, given, strict=True) if isinstance(a, Tensor)
    )
    return torch.channels_last if same else torch.contiguous_format


def _alike(a: Tensor, b: object) -> bool:
    if not isinstance(b, Tensor) or (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)


def order_of(tensor: Tensor) -> torch.memory_format:
    """Return the order that a tensor has: channels last for images in it, else the usual one."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
