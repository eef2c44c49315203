"""Settings say once what each of their fields may be: checks, options, tests and documentation follow from it.

A frozen dataclass, or a record of `calib.files.storage`, annotates its fields and calls `check_declared`:

    @dataclass(frozen=True)
    class Training:
        epochs: Annotated[float, Declared("passes over the data", Interval(0, above=True), "--epochs")] = 4.0

        def __post_init__(self) -> None:
            check_declared(self)

`deploy.commands.declared_options` makes the options of the command line.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from calib.errors import UserError

MOST = 10**9
"""No number is larger, unless its field says so: products of a few fields stay far from overflowing."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4000
_SHOWN, _LONGEST_MESSAGE = 40, 400


class Group(Enum):
    """The headings under which `--help` shows arguments and options."""

    ARGUMENTS = "Arguments"
    WHAT = "What"
    WHERE = "Where"
    LENGTH = "How long"
    HOW = "How it is computed"
    OUTPUT = "Output"
    SELDOM = "Seldom needed"


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included: `above` leaves out `low`, `below` leaves out `high`."""

    low: float
    high: float = MOST
    above: bool = False
    below: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a number lies inside."""
        return bool(
            (value > self.low if self.above else value >= self.low)
            and (value < self.high if self.below else value <= self.high)
        )

    def __str__(self) -> str:
        return f"{self.lower} and {'below' if self.below else 'at most'} {self.high}"

    @property
    def lower(self) -> str:
        """The lower end in words."""
        return f"{'above' if self.above else 'at least'} {self.low}"

    @property
    def short(self) -> str:
        """In words, without an upper end that all numbers have."""
        return self.lower if self.high == MOST else str(self)


@dataclass(frozen=True, eq=False)
class OneOf:
    """One of `names`, which may be a registry: it is read when it is needed."""

    names: Iterable[str]

    def allows(self, value: Any) -> bool:
        """Whether it is one of the names."""
        return value in self.names

    def __str__(self) -> str:
        return f"one of {self.short}"

    @property
    def short(self) -> str:
        """The names."""
        return ", ".join(self.names)


@dataclass(frozen=True)
class Matching:
    """A text that matches `pattern` as a whole; `meaning` says which texts do."""

    pattern: str
    meaning: str

    def allows(self, value: Any) -> bool:
        """Whether the text matches."""
        return re.fullmatch(self.pattern, value, re.DOTALL) is not None

    def __str__(self) -> str:
        return self.meaning

    short = ""


@dataclass(frozen=True)
class Parsed:
    """A text that `parse` understands, which raises UserError otherwise; `meaning` says what it is."""

    parse: Callable[[str], object]
    meaning: str

    def allows(self, value: Any) -> bool:
        """Whether the text is understood; the UserError of `parse` otherwise, which says more."""
        self.parse(value)
        return True

    def __str__(self) -> str:
        return self.meaning

    short = ""


@dataclass(frozen=True)
class APath:
    """A path. An empty one would be the current directory, which nobody means by it."""

    def allows(self, value: Any) -> bool:
        """Whether the system could have such a path."""
        encoded = os.fsencode(value)
        return bool(
            str(value).strip()
            and b"\0" not in encoded
            and len(encoded) <= _LONGEST_PATH
            and max(map(len, encoded.split(b"/"))) <= _LONGEST_NAME
        )

    def __str__(self) -> str:
        return f"a path (. is the current directory) with names of at most {_LONGEST_NAME} bytes"

    short = ""


Limits: TypeAlias = Interval | OneOf | Matching | Parsed | APath
NOT_BLANK = Matching(r".*\S.*", "a text that is not blank")
SEEDS = Interval(0, 2**32 - 1)


@dataclass(frozen=True, eq=False)
class Declared:
    """What an annotation says of a field.

    `help` is one short sentence, which the names of a `OneOf` follow. `option` is the option that sets it, "--on/--off"
    for two of them, a name in capitals for an argument; None where the command line does not offer it. `unset` says
    what stands in when nothing is given, and `metavar` the unit of the value.
    """

    help: str
    limits: Limits | None = None
    option: str | None = None
    group: Group = Group.HOW
    unset: str = ""
    metavar: str | None = None


@dataclass(frozen=True, eq=False)
class Field:
    """A declared field: `kind` is the type of one value, `many` whether it holds several."""

    owner: type
    name: str
    declared: Declared
    kind: type
    default: Any
    optional: bool
    many: bool

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is inspect.Parameter.empty

    @property
    def label(self) -> str:
        """Its name in messages: the option, or the field where there is none."""
        return self.declared.option or f"{self.name} of {self.owner.__name__}"

    @property
    def option_name(self) -> str:
        """Its option as a name of Python, as `size_only` of --size-only; '' where there is none."""
        return (self.declared.option or "").partition("/")[0].lstrip("-").replace("-", "_").lower()

    @property
    def allowed(self) -> str:
        """What one value may be, in words."""
        limits = self.declared.limits
        if isinstance(limits, Interval):
            return f"{_KINDS[self.kind]}, {limits}"
        return str(limits) if limits is not None else _KINDS[self.kind]

    def refusal(self, value: Any) -> UserError:
        """Return the error that a value which is not allowed deserves."""
        text = repr(value) if not isinstance(value, Path) else repr(str(value))
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return UserError(f"{self.label} must be {self.allowed}, not {shown}")

    def check(self, value: Any) -> None:
        """Raise UserError for a value that the field cannot have."""
        if value is None and self.optional:
            return
        if not self.many:
            self.check_one(value)
        elif not isinstance(value, tuple):
            given = tuple(value) if isinstance(value, list) else (value,)
            raise UserError(f"{self.label} holds several: give a tuple, as {given!r}")
        else:
            for each in value:
                self.check_one(each)

    def check_one(self, value: Any) -> None:
        """Raise UserError for a value that cannot stand alone, or in the tuple of a field that holds several."""
        limits = self.declared.limits
        if not _is(self.kind, value):
            raise self.refusal(value)
        if limits is None or (value == "" and self.default == ""):
            return
        try:
            allowed = limits.allows(value)
        except UserError as error:
            raise UserError(f"{self.label}: {_shortened(str(error))}") from error
        if not allowed:
            raise self.refusal(value)


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}


def check_declared(settings: object) -> None:
    """Raise UserError for the first field whose value is not allowed."""
    for name, field in declared_fields(type(settings)).items():
        field.check(getattr(settings, name))


def declared_fields(owner: type) -> Mapping[str, Field]:
    """Return the declared fields of a class, by name."""
    return _declared_fields(owner)


@functools.cache
def _declared_fields(owner: type) -> Mapping[str, Field]:
    parameters = inspect.signature(owner).parameters
    return {
        name: _field(owner, name, hint, parameters[name].default)
        for name, hint in get_type_hints(owner, include_extras=True).items()
        if get_origin(hint) is Annotated and any(isinstance(extra, Declared) for extra in hint.__metadata__)
    }


def _field(owner: type, name: str, hint: Any, default: Any) -> Field:
    declared = next(extra for extra in hint.__metadata__ if isinstance(extra, Declared))
    kinds = [kind for kind in get_args(hint.__origin__) or (hint.__origin__,) if kind is not type(None)]
    many = get_origin(hint.__origin__) is tuple
    optional = type(None) in get_args(hint.__origin__)
    return Field(owner, name, declared, kinds[0], default, optional, many)


def _is(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_endless(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_endless(number: float) -> bool:
    return isinstance(number, float) and not math.isfinite(number)


def _shortened(message: str) -> str:
    """Leave out the middle of a message that quotes a long text."""
    half = _LONGEST_MESSAGE // 2
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:half]}...{message[-half:]}"
