"""The supernet: every layer holds all of its weight and activation widths, mixed by parameters that are learned with
the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from calib.calibrate import Calibration
from calib.errors import UserError
from calib.formats.format import FP32, Format
from calib.formats.integers import integer
from calib.formats.quantizers import Scheme
from calib.network.fold import Folded
from calib.network.graph import TracedModel
from calib.network.units import Unit
from calib.task import Task
from smpq.problem.policy import Group, Space
from smpq.supernet.mixtures import FormatMixture, MixedActivation, MixedWeight
from smpq.training.lsq import LearnedActivation, LearnedWeight, TrainedQuantizer, check_learned
from smpq.training.placing import CPU
from smpq.training.trainable import TrainableGraph

Side: TypeAlias = Literal["weight", "activation"]
Key: TypeAlias = tuple[str, Side]
"""Group and side: the candidates of one key are what softmax runs over."""


@dataclass(frozen=True)
class Operation:
    """One width of one side of a group: `w3`, `w4b128`, `a8`; `w32` and `a16` are floats. The player of the supernet's
    game.
    """

    group: str
    side: Side
    name: str
    bits: int

    def __str__(self) -> str:
        return f"{self.group}:{self.name}"


@dataclass(frozen=True)
class SupernetSubject:
    """What a supernet is made of: the folded trace, the model before folding, the space of formats, and the
    calibration.
    """

    task: Task
    traced: TracedModel
    original: nn.Module
    folded: tuple[Folded, ...]
    space: Space
    calibration: Calibration
    scheme: Scheme
    fingerprint: str


class Supernet:
    """The trainable graph with a mixture on every quantisable weight and on every input of a quantisable layer.

    1. Candidates are what the space's formats use, by group: their weight widths and their activation widths. A float
       format, or the float activation of a weight-only one, is a candidate too: the tensor as it is. Units of a group
       share alpha, not steps.
    2. Every candidate has a learned step of its own, which starts at the calibrated one; the weight starts at the float
       model's.
    3. Only inputs of layers are mixed, not what some runtimes also quantise (sums, results of convolutions).
    """

    def __init__(self, subject: SupernetSubject, device: str = CPU) -> None:
        """Make it on `device`, as torch names it. UserError when no layer has a choice."""
        check_learned(chosen for row in subject.space.formats.values() for chosen in row)
        self.subject = subject
        self.space = subject.space
        self.rows: dict[Key, tuple[Operation, ...]] = {}
        for group in self.space.groups:
            self.rows |= _rows(group, self.space.formats[group.name])
        self.operations: tuple[Operation, ...] = tuple(
            operation for row in self.rows.values() if len(row) > 1 for operation in row
        )
        if not self.operations:
            raise UserError(
                "no layer has more than one format to choose from: a supernet needs some, e.g. --formats w2a8,w3a8,w4a8"
            )
        self.choices = {key: FormatMixture(len(row)).to(device) for key, row in self.rows.items()}
        self.graph = TrainableGraph(subject.traced, self.space.units, subject.original, subject.folded, device)
        self.weights: dict[str, MixedWeight] = {}
        self.inputs: dict[str, MixedActivation] = {}
        edges: dict[tuple[str, str], TrainedQuantizer] = {}
        for group in self.space.groups:
            for unit in group.units:
                if any(_is_quantized(operation) for operation in self.rows[group.name, "weight"]):
                    self.weights[unit.path] = self._mixed_weight(group, unit)
                if not any(_is_quantized(operation) for operation in self.rows[group.name, "activation"]):
                    continue
                for call, tensor in zip(unit.calls, unit.inputs, strict=True):
                    if tensor not in self.inputs:
                        self.inputs[tensor] = self._mixed_activation(group, tensor)
                    edges[tensor, call] = self.inputs[tensor]
        self.graph.attach(self.weights, {}, edges)
        self.graph.eval()

    @property
    def alphas(self) -> list[nn.Parameter]:
        """The parameters of all choices."""
        return [choice.alpha for choice in self.choices.values()]

    def steps(self) -> list[nn.Parameter]:
        """Return the step sizes."""
        alphas = {id(alpha) for alpha in self.alphas}
        return [parameter for parameter in self.graph.groups().quantizers if id(parameter) not in alphas]

    def shares(self) -> dict[Key, list[float]]:
        """Return softmax(alpha) of every candidate."""
        with torch.no_grad():
            return {key: choice.shares().double().cpu().tolist() for key, choice in self.choices.items()}

    def complexity(self, shares: Mapping[Key, Tensor | Sequence[float]] | None = None) -> Tensor:
        """Return sum_l MACs_l E[weight bits] E[activation bits] / sum_l MACs_l, a scalar in bit operations a MAC.

        EdMIPS, arXiv 2004.05795, eq. 10, normalised by all MACs. `shares` replaces softmax(alpha); otherwise alpha has
        a gradient.
        """
        device = self.graph.device
        total, macs = torch.zeros((), device=device), 0
        for group in self.space.groups:
            expected = []
            for key in keys_of(group.name):
                row = self.choices[key].shares() if shares is None else torch.as_tensor(shares[key]).to(device)
                bits = torch.tensor([float(operation.bits) for operation in self.rows[key]]).to(device)
                expected.append((row * bits).sum())
            here = sum(unit.macs for unit in group.units)
            total = total + here * expected[0] * expected[1]
            macs += here
        return total / max(macs, 1)

    def _mixed_weight(self, group: Group, unit: Unit) -> MixedWeight:
        candidates: list[LearnedWeight | None] = []
        factor = self.graph.factor(unit.path)
        for operation in self.rows[group.name, "weight"]:
            if not _is_quantized(operation):
                candidates.append(None)
                continue
            chosen = next(f for f in self.space.formats[group.name] if f.weight_key == operation.name)
            calibrated = self.subject.calibration.weight(unit, chosen)
            step = calibrated.scale.to(self.graph.device) / factor.reshape(-1, *[1] * (calibrated.scale.dim() - 1))
            candidates.append(LearnedWeight(step, calibrated.type, calibrated.block))
        return MixedWeight(candidates, self.choices[group.name, "weight"])

    def _mixed_activation(self, group: Group, tensor: str) -> MixedActivation:
        candidates = [
            LearnedActivation(self.subject.calibration.quantizer(tensor, integer(operation.bits), self.subject.scheme))
            if _is_quantized(operation)
            else None
            for operation in self.rows[group.name, "activation"]
        ]
        return MixedActivation(candidates, self.choices[group.name, "activation"])


def operations_of(chosen: Format) -> tuple[str, str]:
    """Return the names of the two operations that a format consists of."""
    return chosen.weight_key, f"a{chosen.activation_bits}"


def _rows(group: Group, formats: Sequence[Format]) -> dict[Key, tuple[Operation, ...]]:
    weights = {chosen.weight_key: int(chosen.weight_bits) for chosen in formats}
    activations = {f"a{chosen.activation_bits}": chosen.activation_bits for chosen in formats}
    found: dict[Key, tuple[Operation, ...]] = {}
    for key, row in zip(keys_of(group.name), (weights, activations), strict=True):
        ordered = sorted(row.items(), key=lambda item: (item[1], item[0]))
        found[key] = tuple(Operation(*key, name, bits) for name, bits in ordered)
    return found


def keys_of(group: str) -> tuple[Key, Key]:
    """Return the keys of a group's weight and activation."""
    return (group, "weight"), (group, "activation")


def _is_quantized(operation: Operation) -> bool:
    return operation.bits < min(16, FP32.weight_bits)
