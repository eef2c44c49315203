"""What fine-tuning made: the float parameters, integers and grids of one policy, how they came about, and their
file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor

from calib.calibrate import Calibration
from calib.errors import UserError
from calib.files.storage import Amount, FileRecord, Positive, Record
from calib.files.tensor_file import check, read_tensor_file, read_tensor_record, write_tensor_file
from calib.formats.format import Format
from calib.formats.integers import integer
from calib.formats.number_type import NumberType
from calib.formats.quantizers import ActivationQuantizer, QuantizedWeight, Scheme
from calib.network.graph import TracedModel
from calib.network.products import parameter_from_weight
from calib.network.units import Unit
from smpq.training.trainable import leaf_names
from smpq.training.weight_file import WeightRow, check_weight, names_of, row_of, tensors_of, weight_from

_PARAMETER = "parameter/"
_REPAIR = "delete it, and fine-tune again if you want to"
_LARGEST_STEP = float(torch.finfo(torch.float32).max)
_SMALLEST_STEP = float(torch.finfo(torch.float32).tiny)


class GridRow(Record, frozen=True, kw_only=True):
    """The grid of one tensor (`calib.formats.quantizers.ActivationQuantizer`); zero is one of its values."""

    tensor: str
    bits: Annotated[int, Meta(ge=2, le=8)]
    scale: Annotated[float, Meta(ge=_SMALLEST_STEP, le=_LARGEST_STEP)]
    zero_point: int
    signed: bool

    def __post_init__(self) -> None:
        low, high = self.grid().limits if not self.signed else (0, 0)
        if not low <= self.zero_point <= high:
            raise ValueError(f"zero point {self.zero_point} of {self.bits} bits, expected {low} to {high}")

    def grid(self) -> ActivationQuantizer:
        """Return the quantiser."""
        return ActivationQuantizer(integer(self.bits), self.scale, self.zero_point, self.signed)


class JudgedRow(Record, frozen=True, kw_only=True):
    """`Judged`."""

    value: float
    metric: float


class HistoryRow(Record, frozen=True, kw_only=True):
    """Mean loss of the steps since the row before."""

    step: Positive
    loss: float


class FineTunedFile(FileRecord, frozen=True, kw_only=True):
    """What `finetuned.safetensors` says about its tensors."""

    NAME = "finetuned.safetensors"
    MADE_BY = "smpq finetune"

    policy: str
    fingerprint: str
    weights: dict[str, WeightRow]
    quantizers: tuple[GridRow, ...]
    before: JudgedRow
    after: JudgedRow
    kept: Literal["start", "end"]
    seconds: Amount
    settings: dict[str, str | int | float | bool | None]
    history: Annotated[tuple[HistoryRow, ...], Meta(max_length=1_000_000)]


@dataclass(frozen=True)
class Judged:
    """How a model does on the calibration data, which is never trained on: `value` as the search judges it, and the
    task's metric.
    """

    value: float
    metric: float


@dataclass(frozen=True)
class FineTunedWeights:
    """A fine-tuned policy.

    `policy` is the key of the policy and `fingerprint` that of the model and the data it was made from. `parameters`
    are the folded float parameters by name; `weights` the integers by unit path; `quantizers` the grids by (tensor,
    bits). `before` and `after` are about the calibration data; where a training found the bits, `before` is at the
    widest widths. `kept` is "end", or "start" when training did not improve the value and changed nothing.
    """

    policy: str
    fingerprint: str
    parameters: Mapping[str, Tensor]
    weights: Mapping[str, QuantizedWeight]
    quantizers: Mapping[tuple[str, int], ActivationQuantizer]
    before: Judged
    after: Judged
    kept: Literal["start", "end"]
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()

    def save(self, path: Path) -> None:
        """Write a safetensors file in one step."""
        tensors = {f"{_PARAMETER}{name}": tensor for name, tensor in self.parameters.items()}
        for unit, weight in self.weights.items():
            tensors |= tensors_of(unit, weight)
        write_tensor_file(path, self._record(), tensors)

    @classmethod
    def load(cls, path: Path) -> FineTunedWeights:
        """Read what `save` wrote. UserError when it is missing, damaged, of another version, or holds what no training
        makes.

        That it fits a model is for `check_fits` to say.
        """
        record, tensors = read_tensor_file(path, FineTunedFile, _REPAIR)
        parameters = {
            name.removeprefix(_PARAMETER): tensor for name, tensor in tensors.items() if name.startswith(_PARAMETER)
        }
        parts = {name for unit, row in record.weights.items() for name in names_of(unit, row)}
        unexpected = sorted(parts.symmetric_difference(name for name in tensors if not name.startswith(_PARAMETER)))
        check(
            not unexpected, path, f"{', '.join(unexpected[:1])[:200]!r} is missing, or does not belong there", _REPAIR
        )
        grids = {(row.tensor, row.bits): row.grid() for row in record.quantizers}
        check(len(grids) == len(record.quantizers), path, "a tensor has two grids of the same bits", _REPAIR)
        weights = {unit: weight_from(unit, row, tensors) for unit, row in record.weights.items()}
        for unit, weight in weights.items():
            check_weight(weight, path, unit, _REPAIR)
        for name, tensor in parameters.items():
            check(tensor.dtype == torch.float32, path, f"{name[:200]!r} is {tensor.dtype}, expected float32", _REPAIR)
        return cls(
            record.policy,
            record.fingerprint,
            parameters,
            weights,
            grids,
            Judged(record.before.value, record.before.metric),
            Judged(record.after.value, record.after.metric),
            record.kept,
            record.seconds,
            record.settings,
            [{"step": row.step, "loss": row.loss} for row in record.history],
        )

    def check_fits(self, traced: TracedModel, units: Sequence[Unit], path: Path) -> None:
        """Raise UserError, which names the file by `path`, unless this is about all parameters of the model, and about
        its units alone.
        """
        shapes = {name: traced.state[node].shape for node, name in leaf_names(traced).items()}
        for name in sorted(shapes.keys() | self.parameters.keys()):
            found, wanted = self.parameters.get(name), shapes.get(name)
            fits = found is not None and found.shape == wanted
            check(fits, path, f"the parameter {name[:200]!r} does not fit the model", _REPAIR)
        by_path = {unit.path: unit for unit in units}
        for name, weight in self.weights.items():
            fits = name in by_path and tuple(weight.values.shape) == by_path[name].weight_shape
            check(fits, path, f"the weight {name[:200]!r} does not fit the model", _REPAIR)
        for tensor, _ in self.quantizers:
            check(tensor in traced.nodes, path, f"the model has no tensor {tensor[:200]!r}", _REPAIR)

    def traced(self, traced: TracedModel) -> TracedModel:
        """Return the folded model with the fine-tuned float parameters, traced again; node names are those of
        `traced`.
        """
        model = copy.deepcopy(traced.module)
        own = dict(model.named_parameters())
        arranged = {traced.parameter_names[node]: arrange for node, arrange in traced.arranged.items()}
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                fits = (
                    name in own and (arranged[name](own[name]) if name in arranged else own[name]).shape == tensor.shape
                )
                if not fits:
                    raise UserError(f"the fine-tuned {name!r} does not fit the model: fine-tune again")
                stored = parameter_from_weight(tensor, arranged[name], own[name].shape) if name in arranged else tensor
                own[name].copy_(stored)
        free, attention = traced.dynamic_batch, traced.attention
        again = TracedModel(model, traced.example, free=free, inputs=traced.sizes, attention=attention)
        assert list(again.nodes) == list(traced.nodes), "the same model was traced to another graph"
        return again

    def calibration(self, original: Calibration) -> Calibration:
        """Return a calibration that answers with the fine-tuned integers and grids, for this policy alone."""
        return _FineTunedCalibration(self, original)

    def _record(self) -> FineTunedFile:
        return FineTunedFile(
            policy=self.policy,
            fingerprint=self.fingerprint,
            weights={unit: row_of(weight) for unit, weight in self.weights.items()},
            quantizers=tuple(
                GridRow(tensor=tensor, bits=grid.bits, scale=grid.scale, zero_point=grid.zero_point, signed=grid.signed)
                for (tensor, _), grid in self.quantizers.items()
            ),
            before=JudgedRow(**asdict(self.before)),
            after=JudgedRow(**asdict(self.after)),
            kept=self.kept,
            seconds=self.seconds,
            settings=dict(self.settings),
            history=tuple(HistoryRow(step=int(row["step"]), loss=row["loss"]) for row in self.history),
        )


def policy_of_file(path: Path) -> str:
    """Return the key of the policy that a file is about, without reading its tensors; UserError as
    `FineTunedWeights.load`.
    """
    return record_of_file(path).policy


def record_of_file(path: Path) -> FineTunedFile:
    """Return what a file says about its tensors, without reading them; UserError as `FineTunedWeights.load`."""
    return read_tensor_record(path, FineTunedFile, _REPAIR)


class _FineTunedCalibration(Calibration):
    """Has nothing observed: only what was trained can be asked for."""

    def __init__(self, tuned: FineTunedWeights, original: Calibration) -> None:
        self.traced = original.traced
        self.settings = original.settings
        self.attention = original.attention
        self._tuned = tuned

    def quantizer(self, tensor: str, grid: NumberType, scheme: Scheme) -> ActivationQuantizer:
        found = self._tuned.quantizers.get((tensor, int(grid.bits)))
        if found is None or found.type != grid or found.signed != (scheme == "symmetric"):
            raise UserError(
                f"{tensor} was not fine-tuned at {grid.bits} bits ({scheme}): fine-tune again, or delete the "
                "fine-tuned weights"
            )
        return found

    def weight(self, unit: Unit, chosen: Format) -> QuantizedWeight:
        found = self._tuned.weights.get(unit.path)
        if found is None or (found.type, found.block) != (chosen.weight, chosen.weight_block):
            raise UserError(
                f"{unit.path} was not fine-tuned as {chosen}: fine-tune again, or delete the fine-tuned weights"
            )
        return found
