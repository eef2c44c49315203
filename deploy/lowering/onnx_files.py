"""Read and write ONNX files: a file is there in full or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from calib.errors import UserError, first_line
from calib.files.storage import replacing, writing
from deploy.runner.hashes import sha256_of

_LARGEST_SINGLE_FILE = 1_800_000_000
"""Bytes of weights above which they go into a file of their own: one protobuf message holds at most 2 GiB."""


def load_model(path: Path) -> ir.Model:
    """Read an ONNX file; UserError when it is missing or is not one."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        return ir.load(path)
    except Exception as error:  # protobuf, decoding and OS errors share no base class
        raise UserError(
            f"{path} cannot be read as an ONNX model: {type(error).__name__}: {first_line(error)}"
        ) from error


def node_names(path: Path) -> tuple[str, ...]:
    """Return the names of the nodes of an ONNX file; UserError when it is not one."""
    return tuple(node.name for node in load_model(path).graph if node.name)


def save_model(model: ir.Model, path: Path, largest_single_file: int = _LARGEST_SINGLE_FILE) -> None:
    """Check a model and write it under `path`; weights above `largest_single_file` bytes go to `<name>.data` beside it.

    Raises UserError when the disk is full or cannot be written, and ValueError when the ONNX checker refuses the model:
    that is a bug in a pass, never the user's doing.
    """
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    data = data_path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            unfinished = Path(temporary) / path.name
            # The data file is written under its final name, which the model holds.
            ir.save(model, unfinished, external_data=data.name if weights > largest_single_file else None)
            try:
                onnx.checker.check_model(str(unfinished), full_check=True)
            except Exception as error:  # the checker and shape inference raise unrelated types
                raise ValueError(f"the model for {path.name} is not legal ONNX: {error}") from error
            if weights > largest_single_file:
                (unfinished.parent / data.name).replace(data)
            unfinished.replace(path)


def copy_model(source: Path, target: Path) -> None:
    """Copy an ONNX file, and its weights where they are in a file of their own."""
    if data_path(source).is_file():
        save_model(load_model(source), target, largest_single_file=0)
        return
    with replacing(target) as unfinished:
        shutil.copyfile(source, unfinished)


def data_path(path: Path) -> Path:
    """Return the file that holds the weights of a model too large for one file."""
    return path.with_name(path.name + ".data")


def size_bytes(path: Path) -> int:
    """Size of a model on disk, with its data file."""
    data = data_path(path)
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a model, with its data file."""
    return sha256_of(*(file for file in (path, data_path(path)) if file.is_file()))
