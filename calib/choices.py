"""What can be chosen by name, and the registries of this package; importing it loads nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

from calib.declared import Declared, Group, OneOf

Entry = TypeVar("Entry")


class Registry(MutableMapping[str, Entry], Generic[Entry]):
    """Entries by name.

    1. A decorator in the module of an entry puts it here.
    2. `modules` says where the built-in entries are. Such a module is imported when its entry is asked for, so that a
       list of the names costs nothing.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = dict(modules)
        self._entries: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries and name in self._modules:
            importlib.import_module(self._modules[name])
        return self._entries[name]

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter({**self._modules, **self._entries})

    def __len__(self) -> int:
        return len({**self._modules, **self._entries})


OBSERVERS: Registry[Callable[..., Any]] = Registry(
    dict.fromkeys(("mse", "minmax", "percentile", "entropy"), "calib.observers")
)
ROUNDINGS: Registry[Callable[..., Any]] = Registry(
    {name: f"calib.rounding.{name}" for name in ("gptq", "nearest", "descent", "slim")}
)
WIDTH_RULES: Registry[Callable[..., Any]] = Registry(
    {name: f"calib.rounding.widths.{name}" for name in ("error", "slim", "graph")}
)

ObserverName: TypeAlias = Annotated[str, Declared("range of activations", OneOf(OBSERVERS), "--observer", Group.SELDOM)]
RoundingName: TypeAlias = Annotated[str, Declared("rounding of weights", OneOf(ROUNDINGS), "--rounding", Group.SELDOM)]
WidthRuleName: TypeAlias = Annotated[
    str,
    Declared(
        "widths of blocks inside a layer, for formats as wm2.5a16b32", OneOf(WIDTH_RULES), "--widths", Group.SELDOM
    ),
]
