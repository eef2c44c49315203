"""The operators that a function calls on the fake tensors of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from calib.network.nodes import OPERATOR
from calib.network.operators import RETRACED, UnsureError, is_taken_apart

Table: TypeAlias = Mapping[Any, Callable[..., Any]]
"""Operator -> what computes it by others."""


class Recorder(TorchDispatchMode):
    """Keeps the operators that are called, with what they are given and what they give; those of the table are taken
    apart.
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table
        self._inside = 0
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (not isinstance(func, OPERATOR) or func.namespace not in ("aten", "prim")
                or func in RETRACED or func._schema.is_mutable):  # noqa: SLF001  # fmt: skip
            raise UnsureError
        named = kwargs or {}
        if func.namespace == "prim":  # the device of a tensor
            return func(*args, **named)
        composite = self._inside and is_taken_apart(func)  # elsewhere torch takes it apart before it comes here
        apart = self._table.get(func, func.decompose if composite else None)
        if apart is not None:
            with self, self._one_deeper():
                result = apart(*args, **named)
            if result is not NotImplemented:
                return result
        result = func(*args, **named)
        self.calls.append((func, args, named, result))
        return result

    @contextmanager
    def _one_deeper(self) -> Iterator[None]:
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


@contextmanager
def sizes_stay_free(mode: Any) -> Iterator[None]:
    """Raise UnsureError where a free size of a trace becomes a number meanwhile, and set it free again: operators that
    ask in C++ for a size as a number make it one. `mode` is that of `fake_mode`.
    """
    sizes = getattr(mode, "shape_env", None)
    if sizes is None:
        yield
        return
    numbers, guards = dict(sizes.replacements), len(sizes.guards)
    kept = [(table, dict(table)) for table in (sizes.replacements, sizes.replacements_slocs, sizes.var_to_range)]
    try:
        yield
    finally:
        if sizes.replacements != numbers:
            for table, before in kept:
                table.clear()
                table.update(before)
            del sizes.guards[guards:]
            if hasattr(sizes, "_replacements_version_counter"):  # not in older torch
                sizes._replacements_version_counter += 1  # noqa: SLF001 - what was concluded from them is forgotten
            sizes._update_version_counter()  # noqa: SLF001 - as is this
            raise UnsureError


def fake_mode(program: ExportedProgram) -> AbstractContextManager[Any]:
    """Return the mode that the tensors of a trace belong to, where new ones belong too."""
    values = (node.meta.get("val") for node in program.graph.find_nodes(op="placeholder"))
    found = next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)
    return found if found is not None else nullcontext()
