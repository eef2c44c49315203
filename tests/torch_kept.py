"""Tables that torch makes anew for every trace and export, made once: they are the same each time, and half of the time
of a small model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch._export import utils
from torch._ops import OpOverload
from torch._subclasses import fake_impls
from torch.export import exported_program
from torch.onnx._internal.exporter import _registration


@contextmanager
def torch_kept() -> Iterator[None]:
    """Keep all three tables for as long as the context is open."""
    with exporter_kept(), overrides_kept(), operators_kept():
        yield


@contextmanager
def exporter_kept() -> Iterator[None]:
    """Keep torch's table of ONNX functions, which every export makes."""
    registry = _registration.ONNXRegistry
    original = registry.__dict__["from_torchlib"]

    @functools.cache
    def made(opset_version: int) -> Any:
        return original.__func__(registry, opset_version)

    registry.from_torchlib = staticmethod(made)  # type: ignore[method-assign]
    try:
        yield
    finally:
        registry.from_torchlib = original  # type: ignore[method-assign]


@contextmanager
def operators_kept() -> Iterator[None]:
    """Keep the list of composite operators in C++: no library that has some is loaded while tests run."""
    original = utils._materialize_cpp_cia_ops
    utils._materialize_cpp_cia_ops = functools.cache(original)
    try:
        yield
    finally:
        utils._materialize_cpp_cia_ops = original


@dataclass(frozen=True)
class _Override:
    """What torch makes of an operator's kernels and of its rule for fake tensors while it decomposes a program:
    `before`, `after`.
    """

    before: dict[Any, Any]
    after: dict[Any, Any]
    fake: Any


@contextmanager
def overrides_kept() -> Iterator[None]:
    """Keep the kernels by which torch overrides 500 composite operators while it decomposes a program.

    An operator whose kernels or decomposition are others than before is left to torch itself.
    """
    original = exported_program._override_composite_implicit_decomp
    rules = fake_impls.op_implementations_dict
    kept: dict[tuple[Any, ...], _Override] = {}

    @contextmanager
    def overridden(decompositions: Mapping[OpOverload, Callable[..., Any]]) -> Iterator[None]:
        keys = {op: (op, *_identity(made)) for op, made in decompositions.items() if op not in rules}
        known = {op: kept[key] for op, key in keys.items() if key in kept and kept[key].before == op.py_kernels}
        new = {op: made for op, made in decompositions.items() if op not in known}
        before = {op: dict(op.py_kernels) for op in new}
        with original(new):
            for op in new.keys() & keys.keys():
                kept[keys[op]] = _Override(before[op], dict(op.py_kernels), rules[op])
            for op, override in known.items():
                _set(op, override.after)
                rules[op] = override.fake
            try:
                yield
            finally:
                for op, override in known.items():
                    _set(op, override.before)
                    rules.pop(op, None)

    exported_program._override_composite_implicit_decomp = overridden
    try:
        yield
    finally:
        exported_program._override_composite_implicit_decomp = original


def _identity(decomposition: Callable[..., Any]) -> tuple[Any, ...]:
    """What a decomposition computes: torch writes the same function, and a `partial` of it for each operator, anew each
    time.
    """
    if not isinstance(decomposition, functools.partial) or decomposition.func.__closure__:
        return (decomposition,)
    return (decomposition.func.__code__, decomposition.args, *decomposition.keywords.items())


def _set(op: OpOverload, kernels: Mapping[Any, Any]) -> None:
    op.py_kernels.clear()
    op.py_kernels.update(kernels)
    op._dispatch_cache.clear()
