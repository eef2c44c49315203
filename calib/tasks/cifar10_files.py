"""The official python files of CIFAR-10, read without running what a pickle may say."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from calib.errors import UserError

FOLDER = "cifar-10-batches-py"
TRAINING_FILES = tuple(f"data_batch_{index}" for index in range(1, 6))
TEST_FILES = ("test_batch",)
VALUES_PER_IMAGE = 3 * 32 * 32
CLASSES = 10


def find_cifar10(data: Path) -> Path:
    """Return the directory that holds the six files: `data` or its `cifar-10-batches-py`. Raises UserError naming a missing file."""
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
            # The official files were written by Python 2, whose strings become bytes.
            record = _Unpickler(stream, encoding="bytes").load()
    except UserError:
        raise
    except Exception as error:  # a broken pickle raises nearly anything
        raise UserError(f"cannot read {path} ({type(error).__name__}: {error}): is the file complete?") from error
    data, labels = _field(record, "data", path), _field(record, "labels", path)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != VALUES_PER_IMAGE:
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise UserError(f"'data' in {path} is {found}, not uint8 [n, {VALUES_PER_IMAGE}]: is this CIFAR-10?")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise UserError(f"'labels' in {path} is not a list of integers from 0 to {CLASSES - 1}: is this CIFAR-10?")
    if len(labels) != len(data):
        raise UserError(f"{path} has {len(data)} images and {len(labels)} labels: is the file complete?")
    return torch.from_numpy(data.copy()).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def _field(record: object, key: str, path: Path) -> Any:
    if isinstance(record, dict):
        for form in (key.encode(), key):
            if form in record:
                return record[form]
    raise UserError(f"{path} has no {key!r}: give the official, unpacked {FOLDER}")


class _Unpickler(pickle.Unpickler):
    """Loads lists, dictionaries, numbers, bytes and numpy arrays, and refuses every other name.

    1. numpy changed the module of its reconstruction function (`numpy.core` to `numpy._core`): both are the same function.
    2. `codecs.encode` is how newer protocols 0 to 2 write bytes; called with text and the name of an encoding it only makes bytes.
    """

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        }
    )

    def __init__(self, stream: BinaryIO, *, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed object; raise UserError for every other."""
        if (module, name) not in self._ALLOWED:
            raise UserError(f"a CIFAR-10 file asks for {module}.{name}, which is not data: it is refused, get the official files")
        if module.startswith("numpy."):
            # numpy 1 knows only the old name, numpy 2 warns about it.
            module = (
                module.replace("numpy.core", "numpy._core")
                if np.lib.NumpyVersion(np.__version__) >= "2.0.0"
                else module.replace("numpy._core", "numpy.core")
            )
        return super().find_class(module, name)
