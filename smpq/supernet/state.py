"""A supernet's training at the end of an epoch: all that is needed to go on, or to score, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from calib.cache import write_atomically
from calib.errors import UserError
from smpq.contributions import Contributions
from smpq.supernet.network import Supernet

SCHEMA = 1
_GRAPH, _WEIGHTS, _ALPHAS = "graph/", "optimizer/weights/", "optimizer/alphas/"


@dataclass(frozen=True)
class SupernetState:
    """The graph with its quantisers and alphas, both optimisers, the accumulated Shapley values by value, a row of `history` an epoch."""

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
        tensors = {_GRAPH + name: _copied(tensor) for name, tensor in supernet.graph.state_dict().items()}
        tensors |= _flat(weights, _WEIGHTS) | _flat(alphas, _ALPHAS)
        return cls(tensors, dict(contributions), tuple(history), settings, supernet.subject.fingerprint)

    def check(self, supernet: Supernet, settings: Mapping[str, Any]) -> None:
        """Raise UserError unless this is about the same model, data and settings."""
        if self.fingerprint != supernet.subject.fingerprint:
            raise UserError("the supernet was trained from another model, other data or other formats: delete supernet.safetensors")
        for name, value in settings.items():
            if self.settings.get(name) != value:
                raise UserError(
                    f"the supernet was trained with {name}={self.settings.get(name)!r}, now {value!r} is asked for: "
                    "use the same, or delete supernet.safetensors"
                )

    def restore(
        self,
        supernet: Supernet,
        weights: torch.optim.Optimizer | None = None,
        alphas: torch.optim.Optimizer | None = None,
    ) -> None:
        """Put everything back. UserError when the supernet has other parts."""
        own = {name.removeprefix(_GRAPH): tensor for name, tensor in self.tensors.items() if name.startswith(_GRAPH)}
        try:
            supernet.graph.load_state_dict(own)
        except RuntimeError as error:
            raise UserError("supernet.safetensors does not fit the model: delete it, and train the supernet again") from error
        for optimizer, prefix in ((weights, _WEIGHTS), (alphas, _ALPHAS)):
            if optimizer is not None:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": self._optimizer(prefix)})
        supernet.graph.eval()

    def save(self, path: Path) -> None:
        """Write a safetensors file in one step."""
        record = {
            "schema": SCHEMA,
            "contributions": {value: found.to_json() for value, found in self.contributions.items()},
            "history": [dict(row) for row in self.history],
            "settings": dict(self.settings),
            "fingerprint": self.fingerprint,
        }
        write_atomically(path, save(dict(self.tensors), {"smpq": json.dumps(record)}))

    @classmethod
    def load(cls, path: Path, supernet: Supernet) -> SupernetState:
        """Read what `save` wrote; UserError when the file is missing, damaged, of another version, or of other operations."""
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})["smpq"])
                if record["schema"] != SCHEMA:
                    raise UserError(f"{path} has schema {record['schema']!r}; this version reads schema {SCHEMA}: delete it")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            contributions = {
                value: Contributions.from_json(row, supernet.operations) for value, row in record["contributions"].items()
            }
            return cls(tensors, contributions, record["history"], record["settings"], record["fingerprint"])
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: make it with smpq train-supernet") from error
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged or of another space ({type(error).__name__}: {error}): delete it to train the supernet again"
            ) from error

    def _optimizer(self, prefix: str) -> dict[int, dict[str, Tensor]]:
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                index, part = name.removeprefix(prefix).split("/", 1)
                found.setdefault(int(index), {})[part] = tensor.clone()
        return found


def _flat(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}{index}/{name}": _copied(tensor)
        for index, parts in optimizer.state_dict()["state"].items()
        for name, tensor in parts.items()
        if isinstance(tensor, Tensor)
    }


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()
