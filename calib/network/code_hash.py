"""Whether functions of the user's are what they were: a hash of their code, and of what it refers to."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from calib.batches import add_to_hash

BYTECODE = sys.implementation.cache_tag or sys.implementation.name
"""What a hash can be compared with: another version of Python compiles the same function to other code."""
_LIBRARIES = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), Tensor, np.ndarray, np.generic)
_COLLECTIONS = (tuple, list, dict, set, frozenset)
_FUNCTIONS = (FunctionType, MethodType, functools.partial, staticmethod, classmethod, property)
_CHANGING = {
    "append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear", "sort",
    "reverse",
}  # fmt: skip
"""Methods that change a collection."""
_CHANGES = ("STORE_SUBSCR", "DELETE_SUBSCR")
_STORES = ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR")
_MOST = 10_000
"""Entries of a collection that is hashed."""


def code_hash(functions: Iterable[Callable[..., Any] | None]) -> str:
    """Return a hash (sha256, hex) of what functions compute; the same in every process of the same version of Python.

    1. It covers their code without comments, docstring and line numbers, and their defaults.
    2. It covers what the code names: functions and classes, in other modules too, as long as these are the user's, and
       numbers, texts, arrays and collections of them, of a module, of a function around, of an object or of its class.
    3. What a function sets itself is left out, as a count of its calls, and so are collections where it changes one.
    """
    hashed = _Hash()
    for function in functions:
        hashed.add(function)
    return hashed.digest.hexdigest()


class _Hash:
    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen = set[tuple[int, int]]()
        self._kept = list[Any]()  # as long as they live, no other object has their number

    def add(self, value: Any, names: Collection[str] = (), *, collections: bool = True) -> None:
        """Add something that code refers to; of an object or module what has one of the `names`."""
        if isinstance(value, _PLAIN):
            add_to_hash(self.digest, value)
        elif isinstance(value, _COLLECTIONS):
            if collections and _is_plain(value):
                add_to_hash(self.digest, sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else value)
        elif self._is_new(value):
            if isinstance(value, _FUNCTIONS):
                self._called(value, names)
            else:
                self._object(value, names, collections)

    def _called(self, value: Any, names: Collection[str]) -> None:
        if isinstance(value, functools.partial):
            for part in (value.func, *value.args, *sorted(value.keywords.items())):
                self.add(part, names)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(inner := value.fget if isinstance(value, property) else value.__func__, FunctionType):
            self._function(inner, value.__self__ if isinstance(value, MethodType) else None)

    def _object(self, value: Any, names: Collection[str], collections: bool) -> None:
        if isinstance(value, ModuleType):
            self._parts(value, [] if _is_library(getattr(value, "__file__", None)) else names, collections)
        elif inspect.isclass(value) or inspect.isbuiltin(value):
            self._kind(value)
        else:
            self._kind(type(value))
            self._parts(value, names, collections)

    def _is_new(self, value: Any) -> bool:
        bound = isinstance(value, MethodType)  # which Python makes anew each time
        which = (id(value.__func__), id(value.__self__)) if bound else (id(value), 0)
        known = which in self._seen
        self._seen.add(which)
        self._kept.append(value)
        return not known

    def _kind(self, kind: Any) -> None:
        """Add a class: its name, and the methods that the user wrote."""
        self.digest.update(f"{kind.__module__}.{kind.__qualname__}\n".encode())
        for each in getattr(kind, "__mro__", ()):
            for _, value in sorted(vars(each).items()):
                inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if isinstance(inner, FunctionType) and not _is_library(inner.__code__.co_filename):
                    self.add(inner)

    def _parts(self, owner: Any, names: Collection[str], collections: bool) -> None:
        held = getattr(owner, "__dict__", {})
        for name in names:
            if name in held:
                self._named(held[name], names, collections)

    def _named(self, value: Any, names: Collection[str], collections: bool) -> None:
        """Add what code refers to, unless it is a function of a library."""
        inner = getattr(value, "__func__", value)
        if not isinstance(inner, FunctionType) or not _is_library(inner.__code__.co_filename):
            self.add(value, names, collections=collections)

    def _function(self, function: FunctionType, owner: Any = None) -> None:
        closed = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        around = {name: cell.cell_contents for name, cell in closed if _is_filled(cell)}
        self._code(function.__code__, {**function.__globals__, **around}, owner, function.__doc__)
        for default in (*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())):
            self.add(default)

    def _code(self, code: CodeType, known: Mapping[str, Any], owner: Any, doc: object = "") -> None:
        self.digest.update(code.co_code + f"{code.co_names}{code.co_freevars}\n".encode())
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant, known, owner)
            elif constant is not doc:
                ordered = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
                self.digest.update(f"{ordered!r}\n".encode())
        steps = list(dis.get_instructions(code))
        own = {each.argval for each in steps if each.opname in _STORES}
        names = [name for name in (*code.co_names, *code.co_freevars) if name not in own]
        changing = _CHANGING & {*code.co_names} or any(each.opname in _CHANGES for each in steps)
        of_kind = {name: value for kind in reversed(type(owner).__mro__) for name, value in vars(kind).items()}
        for name in names:
            for value in (known.get(name), vars(owner).get(name) if hasattr(owner, "__dict__") else None):
                self._named(value, names, not changing)
            if name in of_kind and owner is not None:
                method = of_kind[name]
                bound = MethodType(method, owner) if isinstance(method, FunctionType) else method
                self._named(bound, names, not changing)


def _is_plain(value: Any) -> bool:
    """Whether a collection holds values alone, and not too many."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    return len(value) <= _MOST and all(
        _is_plain(part) if isinstance(part, _COLLECTIONS) else isinstance(part, _PLAIN) for part in value
    )


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


@functools.cache
def _is_library(file: str | None) -> bool:
    """Whether code was installed, or is Python's own."""
    if file is None or file.startswith("<frozen"):
        return True
    return bool(_LIBRARIES & set(Path(file).resolve().parents))
