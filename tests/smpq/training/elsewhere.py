"""A device that is none: tensors that say they are on `meta`, computed on the CPU, and that do not mix with those of
the CPU.

It has the rules of a GPU: operators want all of their tensors on one device (numbers without axes from the CPU are
allowed), copies and `.to()` go between devices, and what the device has does not go into the run's files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from typing_extensions import Self

NAME = "meta"
_THERE = torch.device(NAME)
_BETWEEN = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class Elsewhere(Tensor):
    """A tensor on the device; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=_THERE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """While it is on, `meta` is the device; `calls` counts the operators that ran there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = _compute(func, args, kwargs or {})
        self.calls += any(isinstance(part, Elsewhere) for part in pytree.tree_leaves((args, found)))
        return found


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    strangers = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]
    if there and strangers and func not in _BETWEEN:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = pytree.tree_map_only(Elsewhere, lambda tensor: tensor.inner, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    goes = torch.device(wanted) == _THERE if wanted is not None else bool(there)
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if not goes:
        return found
    wrapped = pytree.tree_map_only(Tensor, Elsewhere, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped
