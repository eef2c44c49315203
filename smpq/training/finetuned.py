"""What fine-tuning made: the float parameters, integers and grids of one policy, how they came about, and their file."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from calib.cache import write_atomically
from calib.calibrate import Calibration
from calib.data import check_finite
from calib.errors import UserError
from calib.formats import Format
from calib.graph import TracedModel
from calib.quantizer import ActivationQuantizer, QuantizedWeight, Scheme
from calib.units import Unit

SCHEMA = 1
_PARAMETER, _INTEGERS, _SCALE = "parameter/", "integers/", "scale/"


@dataclass(frozen=True)
class Judged:
    """How a model does on the calibration data, which is never trained on: `value` as the search judges it, and the task's metric."""

    value: float
    metric: float


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned policy.

    `policy` is the key of the policy and `fingerprint` that of the model and the data it was made from. `parameters` are the folded
    float parameters by name; `weights` the integers by unit path; `quantizers` the grids by (tensor, bits). `before` and `after` are
    about the calibration data. `kept` is "end", or "start" when training did not improve the value and changed nothing.
    """

    policy: str
    fingerprint: str
    parameters: Mapping[str, Tensor]
    weights: Mapping[str, QuantizedWeight]
    quantizers: Mapping[tuple[str, int], ActivationQuantizer]
    before: Judged
    after: Judged
    kept: str
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()

    def save(self, path: Path) -> None:
        """Write a safetensors file in one step."""
        tensors = {f"{_PARAMETER}{name}": tensor.contiguous() for name, tensor in self.parameters.items()}
        for unit, weight in self.weights.items():
            tensors[f"{_INTEGERS}{unit}"] = weight.integers.contiguous()
            tensors[f"{_SCALE}{unit}"] = weight.scale.contiguous()
        write_atomically(path, save(tensors, {"smpq": json.dumps(self._record())}))

    @classmethod
    def load(cls, path: Path) -> FineTuned:
        """Read what `save` wrote; UserError when the file is missing, damaged, or of another version."""
        with _reading(path), safe_open(path, framework="pt") as file:
            record = _record_of(file, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            found = cls._from_record(record, tensors)
        for name, tensor in tensors.items():
            check_finite(tensor, f"{name!r} in {path}")
        return found

    def traced(self, traced: TracedModel) -> TracedModel:
        """Return the folded model with the fine-tuned float parameters, traced again; node names are those of `traced`."""
        model = copy.deepcopy(traced.module)
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                if name not in own or own[name].shape != tensor.shape:
                    raise UserError(f"the fine-tuned {name!r} does not fit the model: fine-tune again")
                own[name].copy_(tensor)
        again = TracedModel(model, traced.example, free=traced.dynamic_batch)
        assert list(again.nodes) == list(traced.nodes), "the same model was traced to another graph"
        return again

    def calibration(self, original: Calibration) -> Calibration:
        """Return a calibration that answers with the fine-tuned integers and grids, for this policy alone."""
        return _Tuned(self, original)

    def _record(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "policy": self.policy,
            "fingerprint": self.fingerprint,
            "weights": {unit: {"bits": weight.bits, "block": weight.block} for unit, weight in self.weights.items()},
            "quantizers": [{"tensor": tensor, **asdict(quantizer)} for (tensor, _), quantizer in self.quantizers.items()],
            "before": asdict(self.before),
            "after": asdict(self.after),
            "kept": self.kept,
            "seconds": self.seconds,
            "settings": dict(self.settings),
            "history": [dict(row) for row in self.history],
        }

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FineTuned:
        weights = {
            unit: QuantizedWeight(entry["bits"], tensors[f"{_INTEGERS}{unit}"], tensors[f"{_SCALE}{unit}"], entry["block"])
            for unit, entry in record["weights"].items()
        }
        grids = [dict(entry) for entry in record["quantizers"]]
        return cls(
            record["policy"],
            record["fingerprint"],
            {name.removeprefix(_PARAMETER): tensor for name, tensor in tensors.items() if name.startswith(_PARAMETER)},
            weights,
            {(grid["tensor"], grid["bits"]): ActivationQuantizer(**_without_tensor(grid)) for grid in grids},
            Judged(**record["before"]),
            Judged(**record["after"]),
            record["kept"],
            record["seconds"],
            record["settings"],
            record["history"],
        )


def policy_of_file(path: Path) -> str:
    """Return the key of the policy that a file is about, without reading its tensors; UserError as `FineTuned.load`."""
    with _reading(path), safe_open(path, framework="pt") as file:
        return str(_record_of(file, path)["policy"])


def _record_of(file: Any, path: Path) -> dict[str, Any]:
    record = json.loads((file.metadata() or {})["smpq"])
    if record["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {record['schema']!r}; this version reads schema {SCHEMA}")
    return dict(record)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: make it with smpq finetune") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it, and fine-tune again if you want to"
        ) from error


def _without_tensor(grid: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in grid.items() if name != "tensor"}


class _Tuned(Calibration):
    """Has nothing observed: only what was trained can be asked for."""

    def __init__(self, tuned: FineTuned, original: Calibration) -> None:
        self.traced = original.traced
        self.settings = original.settings
        self._tuned = tuned

    def quantizer(self, tensor: str, bits: int, scheme: Scheme) -> ActivationQuantizer:
        found = self._tuned.quantizers.get((tensor, bits))
        if found is None or found.signed != (scheme == "symmetric"):
            raise UserError(
                f"{tensor} was not fine-tuned at {bits} bits ({scheme}): fine-tune again, or delete the fine-tuned weights"
            )
        return found

    def weight(self, unit: Unit, chosen: Format) -> QuantizedWeight:
        found = self._tuned.weights.get(unit.path)
        if found is None or (found.bits, found.block) != (chosen.weight_bits, chosen.weight_block):
            raise UserError(f"{unit.path} was not fine-tuned as {chosen}: fine-tune again, or delete the fine-tuned weights")
        return found
