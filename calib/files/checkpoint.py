"""Read the tensors of a file of torch.save without running what its pickle says, in memory that the size of the file
bounds.

`torch.load(weights_only=True)` is no substitute: it calls functions that the file names with what the file gives.
`bytearray(10**11)` is one of them, and its tensors may claim more memory than there is.
"""

from __future__ import annotations

import itertools
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from calib.errors import UserError
from calib.files.inert import Call, Named, Outside
from calib.files.plain_pickle import read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C
_LONGEST_NAME = 100
_MOST_DIMENSIONS = 16
_LARGEST = 2**40
_TENSOR = {f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
_PARAMETER = {f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
_SPECIAL = {
    "sparse": "sparse",
    "qtensor": "quantised",
    "nested": "nested",
    "meta": "on the meta device, without values",
}
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class WrongCheckpointError(ValueError):
    """The file, or one tensor in it, is not as torch.save writes it; the message says what it is."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name; it holds them directly, or under `state_dict` or `model`.

    They share the storages of the file, as they did when it was written. Raises UserError for a file that is damaged or
    holds something else, and names the first tensor that is not dense: expanded, sparse, quantised, nested, meta, of
    8-bit floats.
    """
    try:
        with path.open("rb") as stream:
            loaded, storages = _open_zip(stream) if zipfile.is_zipfile(stream) else _open_stream(stream)
            return _tensors(_state_dict(loaded), storages)
    except (
        OSError,
        ValueError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
    ) as error:
        raise UserError(
            f"cannot read {path} as a file of torch.save ({shown(str(error))}): save model.state_dict() alone, or as "
            ".safetensors"
        ) from error


def shown(name: str) -> str:
    """Return a text from a file for a message: quoted on one line, cut where it is long."""
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...")


@dataclass(frozen=True)
class _Storage:
    """A storage as the pickle describes it: `count` elements."""

    key: str
    dtype: torch.dtype
    count: int


class _Storages:
    """The bytes of the storages by key, each read once."""

    def __init__(self, read: Callable[[str], bytes | memoryview]) -> None:
        self._read = read
        self._found: dict[str, Tensor] = {}

    def elements(self, storage: _Storage) -> Tensor:
        """Return `[count]`; UserError is for the caller: WrongCheckpointError when the file holds another number of
        bytes.
        """
        if storage.key not in self._found:
            raw = bytearray(self._read(storage.key))
            self._found[storage.key] = (
                torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
            )
        found = self._found[storage.key]
        if len(found) != storage.count * storage.dtype.itemsize:
            raise WrongCheckpointError(
                f"announced with {storage.count} values, the file holds {len(found)} bytes of it"
            )
        return found.view(storage.dtype)


def _open_zip(stream: BinaryIO) -> tuple[object, _Storages]:
    """The form since torch 1.6: `NAME/data.pkl`, and one stored entry for each storage."""
    size = stream.seek(0, 2)
    archive = zipfile.ZipFile(stream)
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1 or f"{roots[0]}/constants.pkl" in names:
        raise WrongCheckpointError("a zip file, or TorchScript, but no checkpoint")
    if sum(entry.file_size for entry in entries) > size or any(
        entry.compress_type != zipfile.ZIP_STORED for entry in entries
    ):
        raise WrongCheckpointError("its entries are compressed, or larger than the file")
    root = roots[0]
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise WrongCheckpointError("written on a big-endian machine")

    def read(key: str) -> bytes:
        name = f"{root}/data/{key}"
        if name not in archive.NameToInfo:
            raise WrongCheckpointError("a storage is missing")
        return archive.read(name)

    return read_pickle(archive.read(f"{root}/data.pkl")).value, _Storages(read)


def _open_stream(stream: BinaryIO) -> tuple[object, _Storages]:
    """The form before: five pickles (magic number, version, machine, value, keys), then number of elements and bytes of
    each storage.
    """
    stream.seek(0)
    content = stream.read()
    magic = read_pickle(content)
    if magic.value != _MAGIC:
        raise WrongCheckpointError("it does not begin as one")
    version = read_pickle(content, magic.end)
    machine = read_pickle(content, version.end)
    if not isinstance(machine.value, dict) or machine.value.get("little_endian") is not True:
        raise WrongCheckpointError("written on a big-endian machine")
    pickled = read_pickle(content, machine.end)
    keys = read_pickle(content, pickled.end)
    sizes = {storage.key: storage.dtype.itemsize for storage in map(_storage, pickled.outside)}
    view, parts = memoryview(content), dict[str, memoryview]()
    position = keys.end
    for key in keys.value if isinstance(keys.value, list) else []:
        if not isinstance(key, str) or key not in sizes:
            raise WrongCheckpointError("it lists a storage that it does not use")
        (count,) = struct.unpack_from("<q", content, position)
        end = position + 8 + count * sizes[key]
        if count < 0 or end > len(content):
            raise WrongCheckpointError("it ends within a storage: is it complete?")
        parts[key] = view[position + 8 : end]
        position = end
    return pickled.value, _Storages(lambda key: parts.get(key, view[:0]))


def _state_dict(loaded: object) -> Mapping[Any, object]:
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise WrongCheckpointError("it does not hold a state_dict, names with tensors")
    return loaded


def _tensors(state: Mapping[Any, object], storages: _Storages) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Call):
            raise WrongCheckpointError(
                f"it does not hold a state_dict, names with tensors, but a value of type {type(value).__name__} "
                f"under a key of type {type(name).__name__}"
            )
        try:
            found[name] = _tensor(value, storages)
        except WrongCheckpointError as error:
            raise WrongCheckpointError(f"{shown(name)} is {error}") from error
    return found


def _tensor(call: Call, storages: _Storages) -> Tensor:
    if call.function in _PARAMETER and call.arguments and isinstance(call.arguments[0], Call):
        call = call.arguments[0]
    kinds = [said for part, said in _SPECIAL.items() if part in call.function]
    if call.function not in _TENSOR or len(call.arguments) < 4:
        raise WrongCheckpointError(kinds[0] if kinds else f"made by {shown(call.function)}, which is not called")
    outside, offset, size, stride, *more = call.arguments
    storage = _storage(outside)
    if storage.dtype == torch.uint8 and call.function.endswith("v3"):
        kind = more[2] if len(more) > 2 else None
        raise WrongCheckpointError(f"of type {shown(kind.name)}" if isinstance(kind, Named) else "of an unknown type")
    shape, strides = _sizes(size), _sizes(stride)
    if type(offset) is not int or len(shape) != len(strides) or not 0 <= offset < _LARGEST or any(more[2:]):
        raise WrongCheckpointError("described in a form that is not known")
    count = math.prod(shape)
    if count > storage.count:
        raise WrongCheckpointError(f"an expanded view, {count} values where the file holds {storage.count}")
    if not count:
        return torch.empty(shape, dtype=storage.dtype)
    if offset + sum((length - 1) * step for length, step in zip(shape, strides, strict=True)) >= storage.count:
        raise WrongCheckpointError("longer than its storage")
    return storages.elements(storage).as_strided(shape, strides, offset)


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, Call) and value.function == "torch.Size" and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, tuple) or len(value) > _MOST_DIMENSIONS:
        raise WrongCheckpointError("described in a form that is not known")
    if not all(type(size) is int and 0 <= size < _LARGEST for size in value):
        raise WrongCheckpointError("of an impossible size")
    return value


def _storage(value: object) -> _Storage:
    """Read what torch.save writes in the place of a storage: ("storage", its class, its key, its device, number of
    elements).
    """
    parts = value.key if isinstance(value, Outside) else None
    if not isinstance(parts, tuple) or len(parts) not in (5, 6) or any(parts[5:]):
        raise WrongCheckpointError("described in a form that is not known")
    _, kind, key, _, count = itertools.islice(parts, 5)
    if not (isinstance(kind, Named) and isinstance(key, str) and type(count) is int and 0 <= count < _LARGEST):
        raise WrongCheckpointError("described in a form that is not known")
    name = kind.name.rpartition(".")[2]
    if name not in _STORAGES:
        raise WrongCheckpointError("quantised" if name.startswith("Q") else f"of type {shown(name)}")
    return _Storage(key, _STORAGES[name], count)
