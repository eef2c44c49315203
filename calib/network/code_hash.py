"""Whether functions of the user's are what they were: a hash of their code."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor

from calib.batches import add_to_hash

BYTECODE = sys.implementation.cache_tag or sys.implementation.name
"""What a hash can be compared with: another version of Python compiles the same function to other code."""


def code_hash(functions: Iterable[Callable[..., Any] | None]) -> str:
    """Return a hash (sha256, hex) of what functions compute; the same in every process of the same version of Python.

    It covers their code, without comments, docstring and line numbers, and their defaults. It covers the numbers, texts
    and tensors that they find in the functions around them or in their module and do not set themselves, and the
    functions and methods of the same package that they call. Objects count by their type: what they hold may change
    while they are used.
    """
    hashed = _Hash()
    for function in functions:
        hashed.add(function)
    return hashed.digest.hexdigest()


class _Hash:
    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: set[CodeType] = set()

    def add(self, value: Any) -> None:
        """Add a function, or what one refers to."""
        if isinstance(value, MethodType):
            if isinstance(value.__func__, FunctionType):
                self._add_function(value.__func__, _attributes(value.__self__))
        elif isinstance(value, FunctionType):
            self._add_function(value, {})
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *(part for item in sorted(value.keywords.items()) for part in item)):
                self.add(part)
        elif isinstance(value, (bool, int, float, complex, str, bytes, type(None), Tensor)):
            add_to_hash(self.digest, value)
        else:
            kind = value if inspect.isclass(value) or inspect.isbuiltin(value) else type(value)
            self._name(kind)
            named = "forward" if hasattr(kind, "forward") else "__call__"
            called = next((vars(each)[named] for each in getattr(kind, "__mro__", ()) if named in vars(each)), None)
            if isinstance(called, FunctionType):
                self._add_function(called, {})

    def _name(self, value: Any) -> None:
        module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
        self.digest.update(f"{module}.{name}\n".encode())

    def _add_function(self, function: FunctionType, attributes: Mapping[str, Any]) -> None:
        if function.__code__ in self._seen:
            return
        closed = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        around = {name: _content(cell) for name, cell in closed}
        names = {**function.__globals__, **around}
        self._add_code(function.__code__, names, attributes, _package(function), function.__doc__)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.add(default)

    def _add_code(
        self, code: CodeType, names: Mapping[str, Any], attributes: Mapping[str, Any], package: str, doc: object = ""
    ) -> None:
        self._seen.add(code)
        self.digest.update(code.co_code + f"{code.co_names}{code.co_freevars}\n".encode())
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._add_code(constant, names, attributes, package)
            elif constant is not doc:
                self.digest.update(_written(constant).encode())
        own = {each.argval for each in dis.get_instructions(code) if each.opname in ("STORE_GLOBAL", "STORE_DEREF")}
        for name in (*code.co_names, *code.co_freevars):
            if name in own:
                continue
            found = names.get(name)
            if isinstance(found, FunctionType) and _package(found) != package:
                continue  # that of a library
            if isinstance(found, (FunctionType, functools.partial, Tensor, bool, int, float, complex, str, bytes)):
                self.add(found)
            if name in attributes:
                self.add(attributes[name])


def _attributes(owner: Any) -> dict[str, Any]:
    """Return the methods of an object, and the functions that it holds, by name."""
    if inspect.isclass(owner):
        return {}
    kinds = [vars(kind).items() for kind in type(owner).__mro__]
    names = {name for own in kinds for name, value in own if isinstance(value, FunctionType)}
    held = {name: value for name, value in getattr(owner, "__dict__", {}).items() if callable(value)}
    return {**{name: getattr(owner, name) for name in names if not name.startswith("__")}, **held}


def _package(function: Any) -> str:
    return (getattr(function, "__module__", None) or "").partition(".")[0]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is in it yet
        return None


def _written(constant: Any) -> str:
    if isinstance(constant, frozenset):  # whose order differs from process to process
        return f"{sorted(map(repr, constant))}\n"
    return f"{constant!r}\n"
