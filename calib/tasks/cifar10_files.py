"""The official python files of CIFAR-10, read without running what a pickle may say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from calib.errors import UserError
from calib.files.inert import Call, WrongPickleError
from calib.files.plain_pickle import read_pickle

FOLDER = "cifar-10-batches-py"
TRAINING_FILES = tuple(f"data_batch_{index}" for index in range(1, 6))
TEST_FILES = ("test_batch",)
VALUES_PER_IMAGE = 3 * 32 * 32
CLASSES = 10
LARGEST_FILE = 64 * 2**20
"""In bytes; the official files have 31 million."""
_RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_FROM_BUFFER = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
_UNSIGNED_BYTES = re.compile(r"[|<>=]?u1")
_NUMBERS = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")


def find_cifar10(data: Path) -> Path:
    """Return the directory that holds the six files: `data` or its `cifar-10-batches-py`. Raises UserError naming a
    missing file.
    """
    if not data.is_dir():
        raise UserError(f"there is no directory {data}: give the unpacked {FOLDER} with --data")
    directory = data / FOLDER if (data / FOLDER).is_dir() else data
    for name in (*TRAINING_FILES, *TEST_FILES):
        if not (directory / name).is_file():
            raise UserError(f"{directory} has no file {name}: give the official, unpacked {FOLDER} with --data")
    return directory


def read_cifar10(directory: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """Return pixels `[n, 3, 32, 32]` (uint8) and labels `[n]` (int64): 50,000 for training, 10,000 for test."""
    files = [_read_file(directory / name) for name in (TRAINING_FILES if train else TEST_FILES)]
    return torch.cat([pixels for pixels, _ in files]), torch.cat([labels for _, labels in files])


def _read_file(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path} is larger than {LARGEST_FILE:,} bytes: give the official, unpacked {FOLDER}")
        record = read_pickle(content).value
    except (OSError, WrongPickleError) as error:
        raise UserError(f"cannot read {path} ({error}): is the file complete?") from error
    data, labels = _field(record, "data", path), _field(record, "labels", path)
    try:
        pixels = _pixels(data)
    except _NoArrayError as error:
        raise UserError(f"'data' in {path} is {error}, not uint8 [n, {VALUES_PER_IMAGE}]: is this CIFAR-10?") from error
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise UserError(f"'labels' in {path} is not a list of integers from 0 to {CLASSES - 1}: is this CIFAR-10?")
    if len(labels) != len(pixels):
        raise UserError(f"{path} has {len(pixels)} images and {len(labels)} labels: is the file complete?")
    return pixels.view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def _field(record: object, key: str, path: Path) -> object:
    if isinstance(record, dict):
        for form in (key.encode(), key):
            if form in record:
                return cast("object", record[form])
    raise UserError(f"{path} has no {key!r}: give the official, unpacked {FOLDER}")


class _NoArrayError(Exception):
    """The message says what there is in its place."""


@dataclass(frozen=True)
class _Described:
    """What a pickle says about an array. Nothing of it is checked."""

    kind: object
    shape: object
    order: object
    content: object


def _pixels(value: object) -> Tensor:
    """Return the array `[n, 3072]` (uint8) that is described; what it is made of is checked first."""
    found = _described(value)
    kind = _dtype(found.kind)
    if not _UNSIGNED_BYTES.fullmatch(kind):
        raise _NoArrayError(f"an array of {_type_name(kind)}")
    if not isinstance(found.shape, tuple) or not all(type(size) is int for size in found.shape):
        raise _NoArrayError("an array whose shape is no tuple of integers")
    if len(found.shape) != 2 or found.shape[1] != VALUES_PER_IMAGE or found.shape[0] < 1:
        raise _NoArrayError(f"uint8 {str(list(found.shape[:8]))[:80]}")
    content = found.content
    if not isinstance(content, bytes):
        raise _NoArrayError("an array without values")
    if len(content) != found.shape[0] * found.shape[1]:
        raise _NoArrayError(f"uint8 {list(found.shape)} with {len(content)} values")
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return (
        values.view(VALUES_PER_IMAGE, -1).T.contiguous()
        if found.order in (True, "F")
        else values.view(-1, VALUES_PER_IMAGE)
    )


def _described(value: object) -> _Described:
    if isinstance(value, Call):
        if value.function in _FROM_BUFFER and len(value.arguments) == 4:  # buffer, dtype, shape, order: protocol 5
            content, kind, shape, order = value.arguments
            return _Described(kind, shape, order, content)
        if (
            value.function in _RECONSTRUCT and isinstance(value.state, tuple) and len(value.state) == 5
        ):  # ndarray.__setstate__
            _, shape, kind, order, content = value.state
            return _Described(kind, shape, order, content)
        raise _NoArrayError(f"made by {_shown(value.function)}, which is refused")
    raise _NoArrayError(f"a value of type {type(value).__name__}")


def _dtype(value: object) -> str:
    """Return the text that `numpy.dtype` would be called with."""
    if isinstance(value, Call) and value.function == "numpy.dtype" and value.arguments:
        text = value.arguments[0]
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        if isinstance(text, str):
            return text
    raise _NoArrayError("an array of unknown type")


def _type_name(kind: str) -> str:
    return np.dtype(kind).name if _NUMBERS.fullmatch(kind) else _shown(kind)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else f"{text[:60]}...")
