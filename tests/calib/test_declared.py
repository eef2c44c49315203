from dataclasses import dataclass
from typing import Annotated

import pytest

from calib.choices import Registry
from calib.declared import APath, Declared, Interval, Matching, OneOf, Parsed, check_declared, declared_fields
from calib.errors import UserError
from calib.files.storage import Record


def even(text: str) -> int:
    if int(text) % 2:
        raise UserError(f"{text} is odd: write an even number")
    return int(text)


NAMES: Registry[int] = Registry({})


@dataclass(frozen=True)
class Settings:
    steps: Annotated[int, Declared("steps", Interval(1, 10), "--steps")] = 5
    rate: Annotated[float | None, Declared("rate", Interval(0, 1, above=True, below=True))] = None
    name: Annotated[str, Declared("name", OneOf(NAMES), "--name")] = "first"
    sizes: Annotated[tuple[int, ...], Declared("sizes", Interval(2), "--size")] = ()
    pairs: Annotated[str, Declared("pairs", Parsed(even, "an even number"), "--pairs")] = ""
    where: Annotated[str, Declared("where", Matching("here|there", "here or there"))] = "here"
    path: Annotated[str | None, Declared("path", APath(), "--path")] = None
    fast: Annotated[bool, Declared("fast", option="--fast")] = False
    undeclared: object = None

    def __post_init__(self) -> None:
        check_declared(self)


class Written(Record, frozen=True):
    steps: Annotated[int, Declared("steps", Interval(1), "--steps")] = 5

    def __post_init__(self) -> None:
        check_declared(self)


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    monkeypatch.setattr(NAMES, "_entries", {"first": 1, "second": 2})


def test_what_is_allowed():
    Settings(10, 0.5, "second", (2, 10**9), "4", "there", "x", fast=True)
    Settings(1, rate=None, pairs="", path=".")
    assert Written(3).steps == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "--steps must be a whole number, at least 1 and at most 10, not 0"),
        ({"steps": "3"}, "--steps must be a whole number, at least 1 and at most 10, not '3'"),
        ({"steps": True}, "--steps must be a whole number, at least 1 and at most 10, not True"),
        ({"rate": 1.0}, "rate of Settings must be a number, above 0 and below 1, not 1.0"),
        ({"rate": float("nan")}, "rate of Settings must be a number, above 0 and below 1, not nan"),
        ({"name": "third"}, "--name must be one of first, second, not 'third'"),
        ({"sizes": (2, 1)}, "--size must be a whole number, at least 2 and at most 1000000000, not 1"),
        ({"sizes": [2]}, "--size holds several: give a tuple, as (2,)"),
        ({"pairs": "3"}, "--pairs: 3 is odd: write an even number"),
        ({"where": "Here"}, "where of Settings must be here or there, not 'Here'"),
        ({"where": "here\n"}, "where of Settings must be here or there, not 'here\\n'"),
        ({"path": " "}, "--path must be a path (. is the current directory) with names of at most 255 bytes, not ' '"),
        ({"fast": 1}, "--fast must be True or False, not 1"),
        ({"name": "x" * 100}, f"--name must be one of first, second, not '{'x' * 39}..."),
    ],
)
def test_what_is_not(wrong, message):
    with pytest.raises(UserError) as raised:
        Settings(**wrong)
    assert str(raised.value) == message


def test_a_record_of_a_file_is_checked_the_same_way():
    with pytest.raises(UserError, match="--steps must be a whole number, at least 1"):
        Written(0)


def test_what_is_known_of_a_field():
    fields = declared_fields(Settings)
    assert "undeclared" not in fields
    assert (fields["rate"].kind, fields["rate"].optional, fields["rate"].default) == (float, True, None)
    assert (fields["sizes"].kind, fields["sizes"].many) == (int, True)
    assert not fields["steps"].required


def test_a_name_that_is_added_is_allowed_from_then_on():
    NAMES["third"] = 3
    assert Settings(name="third").name == "third"
