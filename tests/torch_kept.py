"""Tables that torch makes anew for every trace and export, made once: they are the same each time, and half of the time
of a small model.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._export import utils
from torch._ops import OpOverload
from torch._subclasses import fake_impls
from torch.export import exported_program
from torch.onnx._internal.exporter import _decomp, _registration

from tests.symbols_kept import symbols_kept


@contextmanager
def torch_kept() -> Iterator[None]:
    """Keep all tables for as long as the context is open."""
    with exporter_kept(), decompositions_kept(), overrides_kept(), operators_kept(), symbols_kept():
        yield


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Look for garbage after two million new objects that live on instead of seven hundred, and never among what is
    there already: a sixth of the time of a trace.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000_000, 5, 5)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


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
def decompositions_kept() -> Iterator[None]:
    """Keep the exporter's table of decompositions, which follows from that of its functions."""
    original = _decomp.create_onnx_friendly_decomposition_table
    made = functools.cache(original)

    def copied(registered: set[Any]) -> dict[Any, Any]:
        return dict(made(frozenset(registered)))  # type: ignore[arg-type]

    _decomp.create_onnx_friendly_decomposition_table = copied
    try:
        yield
    finally:
        _decomp.create_onnx_friendly_decomposition_table = original


@contextmanager
def operators_kept() -> Iterator[None]:
    """Keep the lists of composite operators, until a library or a test registers one."""
    in_cpp, found = utils._materialize_cpp_cia_ops, exported_program._collect_all_valid_cia_ops
    utils._materialize_cpp_cia_ops = _until_operators_are_added(in_cpp)
    exported_program._collect_all_valid_cia_ops = _until_operators_are_added(found)
    try:
        yield
    finally:
        utils._materialize_cpp_cia_ops = in_cpp
        exported_program._collect_all_valid_cia_ops = found


def _until_operators_are_added(collect: Callable[[], Any]) -> Callable[[], Any]:
    """Return what `collect` gave for as many composite operators as there are."""

    @functools.cache
    def collected(_operators: int) -> Any:
        return collect()

    composite = "CompositeImplicitAutograd"
    return lambda: collected(len(torch._C._dispatch_get_registrations_for_dispatch_key(composite)))


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
