"""Weights from a file: read without running anything, compared with the model by name, shape and type, and only then
copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from calib.data import check_finite
from calib.errors import UserError
from calib.files.checkpoint import read_checkpoint, shown

LARGEST_HEADER = 16 * 2**20
"""Bytes of names and shapes in a safetensors file: about 100,000 tensors."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file, or of a checkpoint of torch.save (`calib.files.checkpoint`).

    A checkpoint may hold the tensors directly or under `state_dict` or `model`; a leading `module.` is removed. The
    tensors take no more memory than the file. Raises UserError when it is missing, damaged, or not a mapping of dense
    tensors. `restore` checks the values.
    """
    if not path.is_file():
        raise UserError(
            f"there is no weights file {path}: give a .safetensors file, or one written by torch.save, with --weights"
        )
    loaded = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    weights = {key.removeprefix("module."): tensor for key, tensor in loaded.items()}
    if len(weights) != len(loaded):
        raise UserError(f"{path} holds tensors whose names differ by a leading 'module.' alone: remove one of them")
    return weights


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; UserError when it is damaged, or names a tensor twice."""
    try:
        check_header(path, LARGEST_HEADER)
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"cannot read {path} as safetensors ({shown(str(error))}): is the file complete?") from error


def restore(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy `weights` into `model`; raise UserError naming the key when they do not fit. `path` is for messages.

    1. Names and shapes are those of the model; `num_batches_tracked` may be missing: only training uses it.
    2. Floats of 16, 32 or 64 bits may stand for one another, and are finite after the conversion. Any other type is
       that of the model.
    """
    expected = model.state_dict()
    for key, tensor in expected.items():
        if key in weights:
            _check_fits(weights[key], tensor, f"{shown(key)} in {path}")
        elif not key.endswith("num_batches_tracked"):
            raise UserError(
                f"{path} has no tensor {key!r} (shape {list(tensor.shape)}): are these the weights of this model?"
            )
    unknown = sorted(set(weights) - set(expected))
    if unknown:
        raise UserError(f"{path} holds {shown(unknown[0])} and the model does not: are these its weights?")
    converted = {key: tensor.to(expected[key].dtype) for key, tensor in weights.items()}
    for key, tensor in converted.items():
        check_finite(tensor, f"{shown(key)} in {path}")
    model.load_state_dict(converted, strict=False)


def check_header(path: Path, largest: int) -> None:
    """Raise ValueError when the header of a safetensors file is longer than `largest` bytes, or names a tensor twice:
    the last would count.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > largest:
            raise ValueError(f"its header has {length} bytes")
        json.loads(stream.read(length), object_pairs_hook=_without_repetition)


def _check_fits(found: Tensor, wanted: Tensor, what: str) -> None:
    if found.layout != torch.strided or found.is_quantized or found.is_meta:
        raise UserError(f"{what} is no dense tensor of plain numbers: save it as one")
    if found.shape != wanted.shape:
        raise UserError(
            f"{what} has shape {list(found.shape)}, the model wants {list(wanted.shape)}: are these its weights?"
        )
    if found.dtype != wanted.dtype and not (found.dtype in _FLOATS and wanted.dtype in _FLOATS):
        kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (found, wanted)]
        raise UserError(f"{what} is {kinds[0]}, the model wants {kinds[1]}: save the weights as {kinds[1]}")


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found
