"""Every way to damage a JSON file that its schema suggests: bytes, keys, types, limits, order, nesting, encoding."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

Place = tuple[str | int, ...]

DEEP = 100_000
"""Levels of nesting, more than any reader may follow."""
_LONG = 100_000
_LONG_LIST = 20_000
_OF_EACH_TYPE: tuple[Any, ...] = (None, True, 7, 0.5, "w8a8", [], {}, [[]], {"x": {}})
_TEXTS = {
    "empty": "",
    "very long": "x" * _LONG,
    "control characters": "\x1b[2J\x00\u202e\nnext",
    "path upwards": "../../x",
    "absolute path": "/etc/passwd",
    "path of Windows": "C:\\x",
    "like a format": "w4a8",
    "of markup": "<script>alert(1)</script>",
}
_TOKENS = ("NaN", "-Infinity", "1e999", "-0.0", "1" + "0" * 30, "0x10", "1" * 5000)
_MARK = "\x7fraw\x7f"
_MARK_TEXT = json.dumps(_MARK, ensure_ascii=False)[1:-1]


@dataclass(frozen=True)
class Mutation:
    """A file with another content, which is made when it is asked for.

    `place` is where it differs, () for the file as a whole; `field` is the place without numbers and keys.
    """

    file: str
    kind: str
    field: str
    place: Place
    content: Callable[[], bytes]

    def __str__(self) -> str:
        return f"{self.file} {'.'.join(map(str, self.place)) or '(whole)'}: {self.kind}"


@dataclass(frozen=True)
class _Spot:
    place: Place
    field: str
    schema: Mapping[str, Any]
    required: bool


def mutations(file: str, content: bytes, schema: Mapping[str, Any]) -> Iterator[Mutation]:
    """Yield every mutation of a file, always the same ones in the same order; of fields that repeat, the first and the
    last.
    """
    value = json.loads(content)
    yield from _of_bytes(file, content, value)
    spots = list(_spots(value, schema, schema["$defs"]))
    by_field: dict[str, list[_Spot]] = {}
    for spot in spots:
        by_field.setdefault(spot.field, []).append(spot)
    for found in by_field.values():
        for spot in found[:1] + found[1:][-1:]:
            for kind, make in _at(spot, value):
                yield Mutation(file, kind, spot.field, spot.place, make)
        for kind, make in _nested(found[0], value):
            yield Mutation(file, kind, found[0].field, found[0].place, make)


def _of_bytes(file: str, content: bytes, value: Any) -> Iterator[Mutation]:
    cuts = {f"cut at {share} %": content[: len(content) * share // 100] for share in (1, 10, 25, 50, 75, 90, 99)}
    first = content.index(b'"') + 1
    last = len(content) - len(content.rsplit(b"}", 1)[1]) - 1
    others = {
        "empty": b"",
        "blank": b" \n",
        "zeros": b"\x00" * 64,
        "text behind it": content + b"x",
        "a zero behind it": content + b"\x00",
        "twice": content * 2,
        "a comma before the end": content[:last] + b"," + content[last:],
        "mark of UTF-8": b"\xef\xbb\xbf" + content,
        "UTF-16": content.decode().encode("utf-16"),
        "UTF-32": content.decode().encode("utf-32-le"),
        "not UTF-8 in a key": content[:first] + b"\xff" + content[first:],
        "too long UTF-8 in a key": content[:first] + b"\xc0\xaf" + content[first:],
        "half of a pair in a key": content[:first] + b"\\ud800" + content[first:],
        "nested lists": b"[" * DEEP,
        "closed nested lists": b"[" * DEEP + b"]" * DEEP,
        "nested objects": b'{"schema":' * DEEP,
        "indented otherwise": json.dumps(value).encode(),
        "spaces around it": b"\n\t " + content + b"\r\n",
        "line ends of Windows": content.replace(b"\n", b"\r\n"),
        "escaped texts": json.dumps(value, ensure_ascii=True, indent=3).encode(),
    }
    tops = {
        f"{text} alone": text.encode()
        for text in ("[]", "{}", '"x"', "7", "null", "true", "NaN", "[1]", '{"schema": 1}')
    }
    for kind, raw in {**cuts, **others, **tops}.items():
        yield Mutation(file, kind, "", (), partial(bytes, raw))


def _spots(value: Any, schema: Mapping[str, Any], types: Mapping[str, Any]) -> Iterator[_Spot]:
    yield from _below(_Spot((), "", schema, required=True), value, types)


def _below(spot: _Spot, value: Any, types: Mapping[str, Any]) -> Iterator[_Spot]:
    schema = _variant(spot.schema, value, types)
    yield _Spot(spot.place, spot.field, schema, spot.required)
    if isinstance(value, dict):
        fields, needed = schema.get("properties", {}), schema.get("required", ())
        for key in value if fields else _some(list(value)):
            inner = fields.get(key, schema.get("additionalProperties", {}))
            name = key if key in fields else "*"
            below = _Spot((*spot.place, key), f"{spot.field}.{name}".lstrip("."), inner, key in needed)
            yield from _below(below, value[key], types)
    if isinstance(value, list):
        fixed = schema.get("prefixItems", ())
        for index in _some(list(range(len(value)))):
            inner = fixed[index] if index < len(fixed) else schema.get("items", {})
            yield from _below(
                _Spot((*spot.place, index), f"{spot.field}[]", inner or {}, required=True), value[index], types
            )


def _variant(schema: Mapping[str, Any], value: Any, types: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references, and choose what fits the value where there are several."""
    while True:
        if "$ref" in schema:
            schema = types[schema["$ref"].rpartition("/")[2]]
        elif "anyOf" in schema:
            fitting = [each for each in schema["anyOf"] if _fits(_variant(each, value, types), value)]
            schema = {**(fitting or schema["anyOf"])[0]}
        else:
            return schema


def _fits(schema: Mapping[str, Any], value: Any) -> bool:
    names = {
        dict: "object",
        list: "array",
        str: "string",
        bool: "boolean",
        int: "integer",
        float: "number",
        type(None): "null",
    }
    name = names[type(value)]
    return schema.get("type") in (name, "number" if name == "integer" else name)


def _some(entries: list[Any]) -> list[Any]:
    """Return the first, the middle and the last one."""
    return [entries[index] for index in sorted({0, len(entries) // 2, len(entries) - 1})] if entries else []


def _at(spot: _Spot, whole: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield what may be done at one place: the kind of mutation, and what makes the file's content."""
    old = _found(whole, spot.place)
    for kind, new in _others(old, spot.schema):
        yield kind, partial(_changed, whole, spot.place, new)
    if not spot.place:
        return
    yield "left out", partial(_without, whole, spot.place)
    for token in _TOKENS if isinstance(old, int | float) or old is None else _TOKENS[:2]:
        yield f"the number {token[:12]}", partial(_raw, whole, spot.place, token)
    if isinstance(old, str):
        yield "not UTF-8", partial(_raw, whole, spot.place, '"\udcff"')
        yield "half of a pair", partial(_raw, whole, spot.place, '"\\ud800"')


def _nested(spot: _Spot, whole: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if spot.place:
        yield "nested lists inside", partial(_raw, whole, spot.place, "[" * DEEP + "]" * DEEP)
        yield "nested objects inside", partial(_raw, whole, spot.place, '{"x":' * DEEP + "1" + "}" * DEEP)


def _others(old: Any, schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield other values for one place."""
    for new in _OF_EACH_TYPE:
        if type(new) is not type(old) or isinstance(new, list):
            yield f"{type(new).__name__} {json.dumps(new)} in its place", new
    if isinstance(old, bool):
        yield "the opposite", not old
    elif isinstance(old, int | float):
        yield from _numbers(old, schema)
    elif isinstance(old, str):
        yield from ((f"a text that is {kind}", text) for kind, text in _TEXTS.items())
        yield "one letter more", old + "x"
        yield "one letter less", old[:-1]
        yield "in capitals", old.upper()
        yield from ((f"{each!r}, which may be there", each) for each in schema.get("enum", ()) if each != old)
    elif isinstance(old, list):
        yield from _lists(old)
    elif isinstance(old, dict):
        yield from _objects(old, closed="properties" in schema)


def _numbers(old: float, schema: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "const"):
        if name in schema:
            for step in (-1, 0, 1):
                yield f"{name} {step:+d}", schema[name] + step
    yield from (("the opposite sign", -old), ("one more", old + 1), ("one less", old - 1), ("doubled", old * 2))
    yield from (
        ("a little more", old * 1.001 + 1e-9),
        ("the largest", 1.7e308),
        ("the smallest", 5e-324),
        ("whole, 2**63", 2**63),
    )


def _lists(old: list[Any]) -> Iterator[tuple[str, Any]]:
    yield "one entry more", [*old, old[-1] if old else 1]
    yield "very long", (old or [1]) * (_LONG_LIST // max(len(old), 1))
    if old:
        yield "emptied", []
        yield "the last one left out", old[:-1]
    if len(old) > 1:
        yield "the other way round", old[::-1]
        yield "the first one everywhere", [old[0]] * len(old)


def _objects(old: dict[str, Any], *, closed: bool) -> Iterator[tuple[str, Any]]:
    yield "keys in another order", dict(reversed(old.items()))
    yield "another key", {**old, "another key": 1}
    yield "an empty key", {**old, "": next(iter(old.values()), 1)}
    yield "a key with control characters", {**old, "\x1b[2J\u202e": 1}
    if old:
        (key, value), (last, final) = next(iter(old.items())), list(old.items())[-1]
        yield "a key twice, the same", {**old, _MARK + key: value}
        yield "a key twice, another value", {**old, _MARK + key: final if last != key else 1}
        yield "a key in capitals", {(name.upper() if name == key else name): part for name, part in old.items()}
        yield "emptied", {}
        if not closed:
            yield "a key like another", {**old, key + "x": value}
            yield "values in another order", dict(zip(old, reversed(old.values()), strict=True))


def _found(whole: Any, place: Place) -> Any:
    for key in place:
        whole = whole[key]
    return whole


def _with(whole: Any, place: Place, new: Any) -> Any:
    if not place:
        return new
    copy: Any = dict(whole) if isinstance(whole, dict) else list(whole)
    copy[place[0]] = _with(copy[place[0]], place[1:], new)
    return copy


def _without(whole: Any, place: Place) -> bytes:
    holder: Any = _found(whole, place[:-1])
    holder = dict(holder) if isinstance(holder, dict) else list(holder)
    del holder[place[-1]]
    return _changed(whole, place[:-1], holder)


def _changed(whole: Any, place: Place, new: Any) -> bytes:
    return json.dumps(_with(whole, place, new), ensure_ascii=False, indent=1).replace(_MARK_TEXT, "").encode()


def _raw(whole: Any, place: Place, text: str) -> bytes:
    """Write a value as it stands, valid JSON or not."""
    marked = json.dumps(_with(whole, place, _MARK), ensure_ascii=False, indent=1)
    return marked.replace(f'"{_MARK_TEXT}"', text).encode(errors="surrogateescape")


def share(file: str, content: bytes, schema: Mapping[str, Any], count: int) -> list[Mutation]:
    """Return so many mutations of a file, or all that there are, always the same ones."""
    found = list(mutations(file, content, schema))
    return found if len(found) <= count else random.Random(file).sample(found, count)
