"""The game of a supernet's operations: how well it does on held-out data when some widths are masked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calib.network.execution import Edit, Edits
from calib.task import Batch
from smpq.supernet.mixtures import SharedRounding, blend
from smpq.supernet.network import Key, Supernet
from smpq.supernet.settings import PARTS, GameSettings
from smpq.training.placing import batch_on
from smpq.value.incremental import outputs_of
from smpq.value.parts import split
from smpq.value.value import measure_of

_SAMPLES_AT_ONCE = 32


class SupernetGame:
    """Values of coalitions of `supernet.operations`: those outside have share 0.

    1. BatchNorm is folded with its running statistics; nothing is ever updated. The supernet is read once, when the
       game is made.
    2. A layer's side of which nothing is left keeps its narrowest width: estimators that ask for such coalitions get a
       value all the same; the walks of `smpq.supernet.removal` never do.
    3. Coalitions that are asked for together share what they have in common (`smpq.value.incremental`).
    """

    def __init__(self, supernet: Supernet, batches: Sequence[Batch], settings: GameSettings | None = None) -> None:
        """`batches` were not trained on."""
        self.settings = settings or GameSettings()
        self.players = len(supernet.operations)
        self._supernet = supernet
        self._task = supernet.subject.task
        self._traced = supernet.graph.placed
        self._shares = supernet.shares()
        placed = [batch_on(batch, supernet.graph.device) for batch in batches]
        self._batches = split(placed, _SAMPLES_AT_ONCE) if self._traced.dynamic_batch else placed
        samples = sum(len(batch.inputs[0]) for batch in batches)
        self._counts = np.bincount(np.arange(samples) % PARTS)
        self._positions: dict[Key, list[int]] = {key: [] for key in supernet.rows}
        for index, operation in enumerate(supernet.operations):
            self._positions[operation.group, operation.side].append(index)
        folded = supernet.graph.fold()
        names = self._traced.parameter_names
        self._parameters = {node: folded[name] for node, name in names.items() if name in folded}
        with torch.no_grad():
            self._rounded = {path: self._folded_candidates(path) for path in supernet.weights}
        self._quantizers = {tensor: mixed.quantizers() for tensor, mixed in supernet.inputs.items()}
        self._weights: dict[tuple[str, tuple[float, ...]], Tensor] = {}
        self._inputs: dict[tuple[str, tuple[float, ...]], Edit] = {}
        widest = {key: [0.0] * (len(row) - 1) + [1.0] for key, row in supernet.rows.items()}
        self._largest = float(supernet.complexity(widest))

    def __call__(self, coalitions: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return the `[k]` values of coalitions `[k, players]`, by the first of `settings.values`. UserError when one
        is not a number.
        """
        return self.measure(coalitions)[:, 0]

    def measure(self, coalitions: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return `[k, values]`, higher is better: each coalition judged in every way of `settings.values`."""
        return self.with_parts(coalitions)[:, : len(self.settings.values)]

    def with_parts(self, coalitions: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return `[k, values + parts * values]`: `measure`, and the same on each of 8 parts of the samples."""
        edits = [self.edits(row) for row in coalitions]
        measures = [measure_of(self._task, value) for value in self.settings.values]
        parts = len(self._counts)
        totals, count = np.zeros((len(edits), 1 + parts, len(measures))), 0
        for batch in self._batches:
            float_output = self._traced.run(batch.inputs) if "kl" in self.settings.values else None
            numbers = np.arange(count, count + len(batch.inputs[0])) % parts
            for index, output in outputs_of(self._traced, batch.inputs, edits):
                found = [measure(output, float_output, batch).cpu() for measure in measures]
                totals[index, 0] += [float(each.sum()) for each in found]
                totals[index, 1:] += np.stack([np.bincount(numbers, each.numpy(), parts) for each in found], axis=1)
            count += len(numbers)
        totals /= np.array([count, *self._counts])[:, None]
        if self.settings.cost_weight:
            costs = np.array([float(self._supernet.complexity(self._masked(row))) for row in coalitions])
            totals -= self.settings.cost_weight * costs[:, None, None] / self._largest
        return totals.reshape(len(edits), -1)

    def edits(self, members: npt.NDArray[np.bool_]) -> Edits:
        """Return the changes to the folded graph that make a coalition; equal mixtures are the same object."""
        shares = self._masked(members)
        parameters, edges = dict(self._parameters), {}
        for group in self._supernet.space.groups:
            weight, activation = tuple(shares[group.name, "weight"]), tuple(shares[group.name, "activation"])
            for unit in group.units:
                if unit.path in self._rounded:
                    parameters[unit.weight] = self._weight(unit.path, weight)
                for call, tensor in zip(unit.calls, unit.inputs, strict=True):
                    if tensor in self._quantizers:
                        edges[tensor, call] = self._input(tensor, activation)
        return Edits(edges=edges, parameters=parameters)

    def _masked(self, members: npt.NDArray[np.bool_]) -> dict[Key, list[float]]:
        """The shares of the coalition's members; positions ascend in bits, so the first is the narrowest."""
        found: dict[Key, list[float]] = {}
        for key, shares in self._shares.items():
            positions = self._positions[key]
            if not positions:
                found[key] = [1.0] * len(shares)
                continue
            kept = [bool(members[position]) for position in positions]
            if not any(kept):
                kept[0] = True
            left = [share if stays else 0.0 for share, stays in zip(shares, kept, strict=True)]
            whole = sum(left) if self.settings.renormalise else 1.0
            found[key] = [share / whole for share in left]
        return found

    def _weight(self, path: str, shares: tuple[float, ...]) -> Tensor:
        if (path, shares) not in self._weights:
            parts = [(tensor, share) for tensor, share in zip(self._rounded[path], shares, strict=True) if share > 0]
            self._weights[path, shares] = blend([tensor for tensor, _ in parts], [share for _, share in parts])
        return self._weights[path, shares]

    def _input(self, tensor: str, shares: tuple[float, ...]) -> Edit:
        if (tensor, shares) not in self._inputs:
            self._inputs[tensor, shares] = SharedRounding(self._quantizers[tensor], shares)
        return self._inputs[tensor, shares]

    def _folded_candidates(self, path: str) -> list[Tensor]:
        graph = self._supernet.graph
        leaf, factor = graph.weights[path], graph.factor(path)
        spread = factor.reshape(-1, *[1] * (leaf.dim() - 1))
        return [(rounded * spread).contiguous() for rounded in self._supernet.weights[path].rounded(leaf)]
