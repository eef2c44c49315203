"""What operators a function calls on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from calib.network.nodes import OPERATOR
from calib.network.operators import UnsureError, is_taken_apart

Table = Mapping[Any, Callable[..., Any]]
"""Operator -> the function that computes it from others."""


class Recorder(TorchDispatchMode):
    """Keeps the operators that are called, with what they are given and what they give.

    An operator in `table` is computed by its function, and the operators that this calls are kept. So it is with one
    that torch always takes apart.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(func, OPERATOR) or func.namespace not in ("aten", "prim") or func._schema.is_mutable:  # noqa: SLF001
            raise UnsureError
        named = kwargs or {}
        if func.namespace == "prim":  # the device of a tensor
            return func(*args, **named)
        if func in self._table:
            with self:
                return self._table[func](*args, **named)
        if self._table and is_taken_apart(func):
            with self:
                return func.decompose(*args, **named)
        result = func(*args, **named)
        if any(isinstance(part, Tensor) and not isinstance(part, FakeTensor) for part in pytree.tree_leaves(result)):
            raise UnsureError  # made of nothing but numbers: a constant that no node holds
        self.calls.append((func, args, named, result))
        return result
