"""A training that finds bits, at the end of an epoch: all that is needed to go on, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from calib.errors import UserError
from calib.files.storage import Amount, Count, FileRecord
from calib.files.tensor_file import check, read_tensor_file, write_tensor_file
from smpq.training.finetuned import HistoryRow, Judged, JudgedRow
from smpq.training.kept import alike, copied
from smpq.training.trainable import TrainableGraph

_GRAPH, _MOMENTUM = "graph/", "momentum/"
_REPAIR = "delete it to train again from the start"


class TrainingFile(FileRecord, frozen=True, kw_only=True):
    """What `training.safetensors` says besides its tensors: `key` stands for all that the training depends on, `step`
    counts what is done, `lowered` are the groups in the order in which they lost widths, `searching` says whether
    widths may still change.
    """

    NAME = "training.safetensors"
    MADE_BY = "smpq run"

    key: str
    step: Count
    searching: bool
    lowered: tuple[str, ...]
    numbers: dict[str, float]
    before: JudgedRow
    seconds: Amount
    history: Annotated[tuple[HistoryRow, ...], Meta(max_length=1_000_000)]


@dataclass(frozen=True)
class TrainingState:
    """The graph with its quantisers, the momentum of the optimiser, and what `TrainingFile` says."""

    key: str
    step: int
    searching: bool
    lowered: Sequence[str]
    numbers: Mapping[str, float]
    before: Judged
    seconds: float
    history: Sequence[Mapping[str, float]]
    tensors: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write a safetensors file in one step."""
        record = TrainingFile(
            key=self.key,
            step=self.step,
            searching=self.searching,
            lowered=tuple(self.lowered),
            numbers=dict(self.numbers),
            before=JudgedRow(value=self.before.value, metric=self.before.metric),
            seconds=self.seconds,
            history=tuple(HistoryRow(step=int(row["step"]), loss=row["loss"]) for row in self.history),
        )
        write_tensor_file(path, record, self.tensors)

    @classmethod
    def load(cls, path: Path, key: str) -> TrainingState:
        """Read what `save` wrote. UserError when it is missing, damaged, or of another training than `key`."""
        record, tensors = read_tensor_file(path, TrainingFile, _REPAIR)
        if record.key != key:
            raise UserError(
                f"{path} is of a training with another budget, other formats, settings or data: use another --out, or "
                f"{_REPAIR}"
            )
        return cls(
            record.key,
            record.step,
            record.searching,
            record.lowered,
            record.numbers,
            Judged(record.before.value, record.before.metric),
            record.seconds,
            [{"step": row.step, "loss": row.loss} for row in record.history],
            tensors,
        )

    def restore(self, graph: TrainableGraph, optimizer: torch.optim.Optimizer, path: Path) -> None:
        """Put the tensors back. UserError when the graph or the optimiser has other parts."""
        own = {name.removeprefix(_GRAPH): tensor for name, tensor in self.tensors.items() if name.startswith(_GRAPH)}
        expected = graph.state_dict()
        check(own.keys() == expected.keys(), path, "it has other tensors than the model", _REPAIR)
        for name, tensor in own.items():
            check(alike(tensor, expected[name]), path, f"{name[:200]!r} does not fit the model", _REPAIR)
        graph.load_state_dict(own)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            found = self.tensors.get(f"{_MOMENTUM}{index}")
            if found is None:
                continue
            check(alike(found, parameter), path, f"momentum {index} does not fit the model", _REPAIR)
            # in the memory order of the parameter: sums of a different order round differently
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(found)
        known = {f"{_MOMENTUM}{index}" for index in range(len(parameters))} | {_GRAPH + name for name in own}
        check(known >= self.tensors.keys(), path, "it has tensors that do not belong there", _REPAIR)


def tensors_of(graph: TrainableGraph, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies on the CPU of all that changes while a graph is trained."""
    found = {_GRAPH + name: copied(tensor) for name, tensor in graph.state_dict().items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            found[f"{_MOMENTUM}{index}"] = copied(momentum)
    return found
