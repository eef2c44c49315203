"""Files that are there in full or not at all, and JSON files whose content is a typed value or one message."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from calib.errors import UserError

LARGEST_JSON_BYTES = 256_000_000
"""No file of a run comes near it; what is larger is not read into memory."""

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
AtLeastOne = Annotated[float, msgspec.Meta(ge=1, le=1e18)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Bits = Annotated[int, msgspec.Meta(ge=1, le=2**53)] | Annotated[float, msgspec.Meta(ge=1, le=2**53)]
"""Bits of one number, on average where a layer has several widths."""
Amount = Annotated[float, msgspec.Meta(ge=0)]
AboveZero = Annotated[float, msgspec.Meta(gt=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a JSON object: a subclass lists its fields with their types and limits.

    Reading checks all of them, at every depth, and unknown fields are refused. What no type can say is checked in
    `__post_init__`, which raises ValueError. Instances are not changed.
    """


class FileRecord(Record, frozen=True, kw_only=True):
    """The content of a whole file: a record with a version.

    `VERSION` goes up when older files can no longer be read. `NAME` is the file's name in its directory, `MADE_BY` the
    command that makes it.
    """

    VERSION: ClassVar[int] = 1
    NAME: ClassVar[str] = ""
    MADE_BY: ClassVar[str] = ""
    schema: int = 0

    def __post_init__(self) -> None:
        if self.schema == 0:  # made here, not read
            msgspec.structs.force_setattr(self, "schema", self.VERSION)
        if self.schema != self.VERSION:
            raise ValueError(f"schema {self.schema}, this version of smpq reads schema {self.VERSION}")


_PLACE = re.compile(r"(?P<of_key>`key` in )?`(?P<path>\$[^`]*)`$")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_OPEN_KEY = "[...]"
_LONGEST_KEY_SHOWN = 60
_LONGEST_MESSAGE = 500

RecordType = TypeVar("RecordType")
FileType = TypeVar("FileType", bound=FileRecord)


class _Version(msgspec.Struct):
    """The part of a file that every version has."""

    schema: int


def read_record(
    path: Path, kind: type[FileType], repair: str = "correct it, or delete it to make it again", *, missing: str = ""
) -> FileType:
    """Read a JSON file as a `kind`; `missing` says what to do when it is not there.

    UserError when the file is missing, cannot be read, is of another version, or does not fit: the message has the
    file, the place inside it, what was expected there, and `repair`.
    """
    content = _content(path, missing or (f"make it with {kind.MADE_BY}" if kind.MADE_BY else ""))
    try:
        version = msgspec.json.decode(content, type=_Version).schema
        if version != kind.VERSION:
            raise UserError(f"{path} has schema {version}, this version of smpq reads schema {kind.VERSION}: {repair}")
        record = msgspec.json.decode(content, type=kind)
        json.loads(content, object_pairs_hook=_each_once)
        return record
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is damaged: {_located(error, content, kind)}: {repair}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deeply
        raise UserError(f"{path} is not valid JSON ({error}): {repair}") from error
    except UserError as error:  # of a check that the command line makes too
        raise (
            error if str(path) in str(error) else UserError(f"{path} is damaged: {in_a_line(str(error))}: {repair}")
        ) from error


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Let a UserError that is raised while the content of `path` is used name that file; what it quotes stays on one
    line.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {in_a_line(str(error))}") from error


def in_a_line(text: str) -> str:
    """Write a text that may quote a file so that a terminal shows it as one line, of which the middle is left out where
    it is long.
    """
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    half = _LONGEST_MESSAGE // 2
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]}...{text[-half:]}"


def record_from_text(text: str | bytes, kind: type[RecordType], what: str, repair: str) -> RecordType:
    """Read JSON text as a `kind`; UserError, which names the text by `what`, when it does not fit."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{what} is damaged: {_located(error, text, kind)}: {repair}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not valid JSON ({error}): {repair}") from error


def plain(record: Any) -> Any:
    """Return a record as plain values: dictionaries, lists, texts, numbers and None."""
    return json.loads(json_text(record))


def json_text(record: Any) -> str:
    """Write a record as JSON; ValueError when it holds NaN or infinity, which is a bug where it was made."""
    return json.dumps(msgspec.to_builtins(record, str_keys=True), indent=1, allow_nan=False) + "\n"


def write_record(path: Path, record: FileRecord) -> None:
    """Write a JSON file in one step; UserError when the system does not let it."""
    write_bytes(path, json_text(record).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step; UserError when the system does not let it."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a file beside `path` to write to. It takes the place of `path` when the block ends, and vanishes when
    the block fails.

    The directory is made when it is missing. What is written survives a loss of power. UserError when the system does
    not let it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        unfinished = Path(name)
        try:
            yield unfinished
            with unfinished.open("rb") as stream:
                os.fsync(stream.fileno())
            unfinished.chmod(0o644)  # mkstemp makes files that only their owner can read
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses while `path` is written into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error


def cannot_write(path: Path, error: OSError) -> str:
    """Say why `path` cannot be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"cannot write {path}: the disk is full. Free some space and run the same command again; "
            "what is there is kept"
        )
    reason = error.strerror or str(error) or type(error).__name__
    return f"cannot write {path}: {reason}"


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is given twice: of two entries that a person wrote, neither is silently dropped."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"the key {_shown(key)} is given twice")
        found[key] = value
    return found


def _content(path: Path, missing: str) -> bytes:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"{path} is not a file: remove it")
        size = state.st_size
        if size > LARGEST_JSON_BYTES:
            raise UserError(
                f"{path} has {size / 1e6:.0f} MB, more than any file of its kind: delete it to make it again"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing{f': {missing}' if missing else ''}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _located(error: msgspec.ValidationError, content: str | bytes, kind: type) -> str:
    """Say what is wrong and where. msgspec leaves the keys of mappings open, as in `$.scores[...]`: they are filled in
    where possible.
    """
    text = str(error)
    found = _PLACE.search(text)
    if found is not None and (found["of_key"] or _OPEN_KEY in found["path"]):
        # json reads less than msgspec in some ways: then the keys stay open
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            path = found["path"] + (_OPEN_KEY if found["of_key"] else "")
            place = _with_keys(path, json.loads(content), lambda data: _error_of(data, kind) == text)
            text = f"{text[: found.start()]}{'the key ' if found['of_key'] else ''}`{place}`"
    text = in_a_line(text)
    return text[:1].lower() + text[1:]


def _with_keys(path: str, data: Any, is_wrong: Callable[[Any], bool]) -> str:
    """Fill in the open keys of a path such as `$.scores[...].walks[3]`; LookupError where one cannot be told. `data` is
    changed.
    """
    first, *rest = path.split(_OPEN_KEY)
    holder, place = _at(data, first), first
    for steps in rest:
        key = _wrong_key(holder, lambda: is_wrong(data))
        holder, place = _at(holder[key], steps), f"{place}[{_shown(key)}]{steps}"
    return place


def _wrong_key(holder: dict[str, Any], is_wrong: Callable[[], bool]) -> str:
    """Return the key whose entry is wrong, found by halving; the mapping keeps that entry alone."""
    entries = list(holder.items())
    while len(entries) > 1:
        middle = len(entries) // 2
        for half in (entries[:middle], entries[middle:]):
            holder.clear()
            holder.update(half)
            if is_wrong():
                entries = half
                break
        else:
            raise LookupError
    return entries[0][0]


def _error_of(data: Any, kind: type) -> str:
    try:
        msgspec.json.decode(json.dumps(data).replace("Infinity", "1e999"), type=kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _at(data: Any, path: str) -> Any:
    """Follow a path such as `$.results[3].layers`."""
    for name, index in _STEP.findall(path):
        data = data[int(index)] if index else data[name]
    return data


def _shown(key: str) -> str:
    return json.dumps(key if len(key) <= _LONGEST_KEY_SHOWN else key[:_LONGEST_KEY_SHOWN] + "...")
