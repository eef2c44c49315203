"""Our own safetensors files: tensors, and one typed record about them in the header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from calib.errors import UserError
from calib.files.storage import FileRecord, json_text, record_from_text, write_bytes
from calib.files.weights import check_header
from calib.finite import all_finite

_KEY = "smpq"
_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of safetensors itself. The walks of a supernet stand there."""

FileType = TypeVar("FileType", bound=FileRecord)


def write_tensor_file(path: Path, record: FileRecord, tensors: Mapping[str, Tensor]) -> None:
    """Write record and tensors in one step; UserError when the system does not let it."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, {_KEY: json_text(record)}))


def read_tensor_file(path: Path, kind: type[FileType], repair: str) -> tuple[FileType, dict[str, Tensor]]:
    """Return record and tensors; UserError, which says what to do by `repair`, when the file is missing or damaged, or
    a value is not finite.
    """
    with _opened(path, kind, repair) as file:
        record = _record(file, path, kind, repair)
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"{path} is damaged ({_line(error)}): {repair}") from error
    for name, tensor in tensors.items():
        check(all_finite(tensor), path, f"{name[:200]!r} holds a value that is not finite", repair)
    return record, tensors


def read_tensor_record(path: Path, kind: type[FileType], repair: str) -> FileType:
    """Return the record alone; UserError as `read_tensor_file`."""
    with _opened(path, kind, repair) as file:
        return _record(file, path, kind, repair)


def check(right: bool, path: Path | str, what: str, repair: str) -> None:
    """Raise UserError that `what` is wrong in `path`, unless `right`."""
    if not right:
        raise UserError(f"{path} is damaged: {what}: {repair}")


def _opened(path: Path, kind: type[FileRecord], repair: str) -> Any:
    try:
        check_header(path, _LARGEST_HEADER)
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: make it with {kind.MADE_BY}") from error
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({_line(error)}): {repair}") from error


def _record(file: Any, path: Path, kind: type[FileType], repair: str) -> FileType:
    text = (file.metadata() or {}).get(_KEY, "")
    check(bool(text), path, "it has no record of smpq", repair)
    return record_from_text(text, kind, str(path), repair)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
