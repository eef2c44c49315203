"""The blocks that a reconstruction has done, in a file: what a kill leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor

from calib.errors import UserError
from calib.files.storage import FileRecord
from calib.files.tensor_file import read_tensor_file, write_tensor_file
from calib.formats.quantizers import QuantizedWeight
from smpq.training.weight_file import WeightRow, check_weight, row_of, tensors_of, weight_from

_BIAS = "bias/"
_REPAIR = "delete it; the reconstruction then begins anew"


class PartialFile(FileRecord, frozen=True, kw_only=True):
    """What `reconstruction.safetensors` says about its tensors."""

    NAME = "reconstruction.safetensors"
    MADE_BY = "smpq reconstruct"

    policy: str
    fingerprint: str
    settings: dict[str, str | int | float | bool | None]
    costs: Annotated[tuple[tuple[float, float], ...], Meta(max_length=100_000)]
    weights: dict[str, WeightRow]
    steps: tuple[float, ...]


@dataclass(frozen=True)
class Finished:
    """What the blocks that are done have: integers by unit path, biases by graph name, the steps of all activations in
    the order of the plan; with the cost of each block's error at its start and end.
    """

    policy: str
    fingerprint: str
    settings: Mapping[str, Any]
    costs: tuple[tuple[float, float], ...]
    weights: Mapping[str, QuantizedWeight]
    biases: Mapping[str, Tensor]
    steps: tuple[float, ...]


def write_partial(path: Path, done: Finished) -> None:
    """Write the file in one step."""
    tensors = {f"{_BIAS}{name}": bias for name, bias in done.biases.items()}
    for unit, weight in done.weights.items():
        tensors |= tensors_of(unit, weight)
    record = PartialFile(
        policy=done.policy,
        fingerprint=done.fingerprint,
        settings=dict(done.settings),
        costs=done.costs,
        weights={unit: row_of(weight) for unit, weight in done.weights.items()},
        steps=done.steps,
    )
    write_tensor_file(path, record, tensors)


def read_partial(path: Path) -> Finished | None:
    """Return what a file holds; None where there is none. UserError when it is damaged."""
    if not path.is_file():
        return None
    record, tensors = read_tensor_file(path, PartialFile, _REPAIR)
    try:
        weights = {unit: weight_from(unit, row, tensors) for unit, row in record.weights.items()}
    except KeyError as error:
        raise UserError(f"{path} is damaged: it lacks {error}: {_REPAIR}") from error
    for unit, weight in weights.items():
        check_weight(weight, path, unit, _REPAIR)
    biases = {name.removeprefix(_BIAS): tensor for name, tensor in tensors.items() if name.startswith(_BIAS)}
    return Finished(record.policy, record.fingerprint, record.settings, record.costs, weights, biases, record.steps)
