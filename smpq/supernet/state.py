"""A supernet's training at the end of an epoch: all that is needed to go on, or to score, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from calib.errors import UserError
from calib.files.storage import FileRecord, plain
from calib.files.tensor_file import check, read_tensor_file, write_tensor_file
from smpq.files import EpochRow, EstimateRow
from smpq.supernet.contributions import Contributions
from smpq.supernet.network import Supernet
from smpq.training.kept import alike, copied

_GRAPH, _WEIGHTS, _ALPHAS = "graph/", "optimizer/weights/", "optimizer/alphas/"
_REPAIR = "delete it to train the supernet again"
_PARTS = {_WEIGHTS: ("momentum_buffer",), _ALPHAS: ("step", "exp_avg", "exp_avg_sq")}
"""What SGD with momentum and Adam keep of each parameter."""
_NEVER_NEGATIVE = ("step", "running_var", "exp_avg_sq")
"""How names of tensors end: step sizes and counters, variances, and Adam's own."""


class SupernetStateFile(FileRecord, frozen=True, kw_only=True):
    """What `supernet.safetensors` says besides its tensors; `contributions` are by value."""

    NAME = "supernet.safetensors"
    MADE_BY = "smpq train-supernet"
    VERSION = 2

    contributions: dict[str, EstimateRow]
    history: Annotated[tuple[EpochRow, ...], Meta(min_length=1, max_length=100_000)]
    settings: dict[str, str | int | float | bool | dict[str, list[str] | str | int | float | bool | None] | None]
    fingerprint: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if [row.epoch for row in self.history] != list(range(1, len(self.history) + 1)):
            raise ValueError("the epochs are not 1, 2, 3, ...")


@dataclass(frozen=True)
class SupernetState:
    """The graph with its quantisers and alphas, both optimisers, the accumulated Shapley values by value, a row of
    `history` an epoch.
    """

    tensors: Mapping[str, Tensor]
    contributions: Mapping[str, Contributions]
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    fingerprint: str

    @classmethod
    def of(
        cls,
        supernet: Supernet,
        weights: torch.optim.Optimizer,
        alphas: torch.optim.Optimizer,
        contributions: Mapping[str, Contributions],
        history: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
    ) -> SupernetState:
        """Copy everything as it is now, to the CPU."""
        tensors = {_GRAPH + name: copied(tensor) for name, tensor in supernet.graph.state_dict().items()}
        tensors |= _flat(weights, _WEIGHTS) | _flat(alphas, _ALPHAS)
        return cls(tensors, dict(contributions), tuple(history), settings, supernet.subject.fingerprint)

    def check(self, supernet: Supernet, settings: Mapping[str, Any]) -> None:
        """Raise UserError unless this is about the same model, data and settings."""
        if self.fingerprint != supernet.subject.fingerprint:
            raise UserError(
                "the supernet was trained from another model, other data or other formats: delete supernet.safetensors"
            )
        surplus = sorted(self.settings.keys() - settings.keys())
        if surplus:
            raise UserError(
                f"the supernet was trained with {surplus[0][:100]!r}, which is not known: delete supernet.safetensors"
            )
        for name, value in settings.items():
            if self.settings.get(name) != value:
                raise UserError(
                    f"the supernet was trained with {name}={self.settings.get(name)!r}, now {value!r} is asked for: "
                    "use the same, or delete supernet.safetensors"
                )

        if self.contributions.keys() != set(settings["game"]["values"]):
            raise UserError(
                "the supernet was scored by other values than its settings say: delete supernet.safetensors"
            )

    def restore(
        self,
        supernet: Supernet,
        weights: torch.optim.Optimizer | None = None,
        alphas: torch.optim.Optimizer | None = None,
    ) -> None:
        """Put everything back. UserError when the supernet has other parts."""
        own = {name.removeprefix(_GRAPH): tensor for name, tensor in self.tensors.items() if name.startswith(_GRAPH)}
        expected = supernet.graph.state_dict()
        if own.keys() != expected.keys() or any(not alike(tensor, expected[name]) for name, tensor in own.items()):
            raise UserError("supernet.safetensors does not fit the model: delete it, and train the supernet again")
        supernet.graph.load_state_dict(own)
        # changes nothing that training has made; the limits may differ a little between machines
        supernet.graph.project()
        for name, tensor in supernet.graph.state_dict().items():
            if not torch.allclose(tensor.cpu(), own[name], rtol=0.01, atol=0):
                raise UserError(f"supernet.safetensors is damaged: {name!r} is not above zero: {_REPAIR}")
        for optimizer, prefix in ((weights, _WEIGHTS), (alphas, _ALPHAS)):
            if optimizer is not None:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": self._optimizer(prefix, optimizer)})
        supernet.graph.eval()

    def save(self, path: Path) -> None:
        """Write a safetensors file in one step."""
        record = SupernetStateFile(
            contributions={
                value: msgspec.convert(found.to_json(), EstimateRow) for value, found in self.contributions.items()
            },
            history=tuple(msgspec.convert(row, EpochRow) for row in self.history),
            settings=dict(self.settings),
            fingerprint=self.fingerprint,
        )
        write_tensor_file(path, record, self.tensors)

    @classmethod
    def load(cls, path: Path, supernet: Supernet) -> SupernetState:
        """Read what `save` wrote. UserError when it is missing, damaged, of another version, of other operations, or
        what no training makes.
        """
        record, tensors = read_tensor_file(path, SupernetStateFile, _REPAIR)
        for name, tensor in tensors.items():
            known = name.startswith((_GRAPH, _WEIGHTS, _ALPHAS))
            check(known, path, f"{name[:200]!r} does not belong there", _REPAIR)
            positive = not name.endswith(_NEVER_NEGATIVE) or bool((tensor >= 0).all())
            check(positive, path, f"{name[:200]!r} is negative", _REPAIR)
        try:
            contributions = {
                value: Contributions.from_row(row, supernet.operations) for value, row in record.contributions.items()
            }
        except ValueError as error:
            raise UserError(f"{path} is damaged, or of another space ({error}): {_REPAIR}") from error
        return cls(tensors, contributions, [plain(row) for row in record.history], record.settings, record.fingerprint)

    def _optimizer(self, prefix: str, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
        """Return what the optimiser kept of each of its parameters, by number; UserError when it is not about all of
        them.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found: dict[int, dict[str, Tensor]] = {}
        taken = set()
        for index, parameter in enumerate(parameters):
            for part in _PARTS[prefix]:
                name = f"{prefix}{index}/{part}"
                tensor = self.tensors.get(name)
                wanted = torch.zeros(()) if part == "step" else parameter
                if tensor is not None and alike(tensor, wanted):
                    found.setdefault(index, {})[part] = tensor.clone()
                    taken.add(name)
        whole = all(len(parts) == len(_PARTS[prefix]) for parts in found.values())
        if not whole or taken != {name for name in self.tensors if name.startswith(prefix)}:
            raise UserError("supernet.safetensors does not fit the training: delete it, and train the supernet again")
        return found


def _flat(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}{index}/{name}": copied(tensor)
        for index, parts in optimizer.state_dict()["state"].items()
        for name, tensor in parts.items()
        if isinstance(tensor, Tensor)
    }
