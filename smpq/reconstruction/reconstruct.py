"""Reconstruct a quantised network block by block: roundings, steps and biases that give back what the float blocks
give.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calib.calibrate import Calibration, CalibrationSettings
from calib.errors import UserError
from calib.formats.quantizers import QuantizedWeight
from calib.network.execution import Edits, ordered
from calib.network.graph import TracedModel
from calib.network.order import fastest_order, order_of
from calib.task import Batch
from smpq.reconstruction.blocks import Block, find_blocks
from smpq.reconstruction.channel_scales import Calibrate, with_channel_scales
from smpq.reconstruction.partial import Finished, read_partial, write_partial
from smpq.reconstruction.rounding import SoftWeight, learns_rounding
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.reconstruction.trained_block import Done, Parts, Surroundings, train_block
from smpq.reconstruction.walk import Walk
from smpq.training.finetune import Subject
from smpq.training.finetuned import FineTunedWeights, Judged
from smpq.training.judge import Judge
from smpq.training.lsq import LearnedActivation, check_learned
from smpq.training.placing import CPU, batch_on, graph_on, repeatable_on
from smpq.training.plan import Activations, activations_of
from smpq.training.trainable import leaf_names
from smpq.value.divergence import TaskDivergence


@dataclass(frozen=True)
class BlockProgress:
    """Where the reconstruction stands: a block of so many, iterations done of those of all blocks, and the cost of the
    block's error at its start and end, once it is done.
    """

    block: int
    blocks: int
    done: int
    iterations: int
    cost: tuple[float, float] | None = None


def reconstruct(
    subject: Subject,
    batches: Sequence[Batch],
    settings: ReconstructionSettings,
    partial: Path | None = None,
    report: Callable[[BlockProgress], None] = lambda _: None,
    device: str = CPU,
    memory_mb: float | None = None,
    calibrate: Calibrate | None = None,
) -> FineTunedWeights:
    """Return the plan's weights, biases and activation steps such that each block gives what the float block gives.

    1. Blocks (`find_blocks`) are done in order. Each reads what the quantised blocks in front of it give, at first
       partly (`settings.drop`) what the float ones do, and is compared with the float block on float inputs.
    2. In a block all weights on integers of two bits or more have AdaRound's variables; their steps, the biases that
       its layers alone read, and the steps of activations below 8 bits are learned with them. A block that costs more
       afterwards goes back to where it began.
    3. `batches` are calibration data; targets are used where the task's divergence takes them. `partial` is a file that
       holds the blocks that are done: a reconstruction that was killed goes on behind the last of them, to the same
       result. What of all samples takes more than `memory_mb` between two blocks lies in files without a name.
    4. With `settings.channel_scales` channels are scaled first (`with_channel_scales`). `calibrate` calibrates what
       that changes, as the plan was calibrated; None: as `CalibrationSettings()` says.

    BRECQ (Li et al., arXiv 2102.05426) with the losses of `smpq.reconstruction.losses`. UserError when the error is not
    a number any more, and where nothing is on integers.
    """
    check_learned(chosen for chosen in subject.plan.formats.values() if not chosen.weight.zero_points)
    if not any(map(_is_trained, subject.plan.weights.values())):
        raise UserError("no weight of the policy is on integers of two bits or more: there is nothing to reconstruct")
    started = time.monotonic()
    with repeatable_on(device):
        network = _Reconstruction(subject, batches, settings, device, memory_mb)
        before = network.judge()
        if settings.channel_scales:
            del network  # it holds the samples
            subject = with_channel_scales(subject, batches, calibrate or _calibrating_on(batches))
            network = _Reconstruction(subject, batches, settings, device, memory_mb)
        return network.run(before, started, partial, report)


def _calibrating_on(batches: Sequence[Batch]) -> Calibrate:
    return lambda traced, units: Calibration(traced, units, batches, CalibrationSettings())


class _Reconstruction:
    def __init__(
        self,
        subject: Subject,
        batches: Sequence[Batch],
        settings: ReconstructionSettings,
        device: str,
        memory_mb: float | None,
    ) -> None:
        self.subject, self.settings, self.device = subject, settings, device
        self.batches = batches
        self.order = order = fastest_order(subject.traced, subject.traced.example)
        self.traced = _arranged(graph_on(subject.traced, device), order)
        self.blocks = find_blocks(subject.traced, subject.units)
        self.how = {**asdict(settings), "blocks": ", ".join(str(block.stop) for block in self.blocks)}
        self.apart = TaskDivergence(subject.task)
        placed = (self._placed(batch) for batch in batches)
        fixed = None if subject.traced.dynamic_batch else len(subject.traced.example[0])
        self.walk = Walk(self.traced, self.blocks, placed, settings.samples, fixed or settings.batch, memory_mb)
        self.activations: Activations = activations_of(self.traced, subject.plan)
        self.weights: dict[str, QuantizedWeight] = dict(subject.plan.weights)
        self.leaves = leaf_names(subject.traced)
        self.biases: dict[str, Tensor] = {}
        self.costs: list[tuple[float, float]] = []

    def _placed(self, batch: Batch) -> Batch:
        inputs, target = batch_on(batch, self.device)
        arranged = tuple(ordered(tensor, self.order) for tensor in inputs)
        return Batch(arranged, target if self.apart.takes_target else None)

    def judge(self) -> Judged:
        return Judge(self.subject.task, _Judged(self), self.batches, self.settings.value)()

    def run(
        self, before: Judged, started: float, partial: Path | None, report: Callable[[BlockProgress], None]
    ) -> FineTunedWeights:
        if partial is not None:
            self._resume(partial)
        self._train(partial, report)
        after = self.judge()
        parameters = {name: self.biases.get(node, self.traced.state[node]) for node, name in self.leaves.items()}
        return FineTunedWeights(
            self.subject.key,
            self.subject.fingerprint,
            {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()},
            self.weights,
            {key: module.quantizer() for key, module in self.activations.named.items()},
            before,
            after,
            "end",
            time.monotonic() - started,
            {"reconstruction": self.settings.loss, **asdict(self.settings)},
            [{"step": number + 1, "loss": last} for number, (_, last) in enumerate(self.costs)],
        )

    def _train(self, partial: Path | None, report: Callable[[BlockProgress], None]) -> None:
        total = self.settings.iterations * len(self.blocks)
        float_rows, rows = self.walk.begin(), self.walk.begin(self.edits())
        for number, block in enumerate(self.blocks):
            targets = self.walk.through(block, float_rows, Edits())
            if number >= len(self.costs):
                seen = 0

                def tick(number: int = number) -> None:
                    nonlocal seen
                    seen += 1
                    report(BlockProgress(number, len(self.blocks), number * self.settings.iterations + seen, total))

                found = self._trained(number, block, float_rows, rows, targets, tick)
                self._keep(block, found)
                if partial is not None:
                    write_partial(partial, self._finished())
                done = (number + 1) * self.settings.iterations
                report(BlockProgress(number, len(self.blocks), done, total, (found.before, found.after)))
            rows = self.walk.through(block, rows, self.edits())
            float_rows = targets

    def _trained(
        self,
        number: int,
        block: Block,
        float_rows: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        tick: Callable[[], None],
    ) -> Done:
        """Train one block; its random numbers depend on its number alone, so that they are the same after a kill."""
        parts = self._parts(block)
        if not block.outputs or not (parts.weights or parts.activations):
            return Done({}, {}, 0.0, 0.0)
        around = Surroundings(self._parameters(), self.activations.sources, self.activations.edges)
        generator = torch.Generator().manual_seed(self.settings.seed * 10_007 + number)
        return train_block(
            self.walk, block, parts, around, float_rows, rows, targets, self.settings, generator, self.apart, tick
        )

    def _parts(self, block: Block) -> Parts:
        """What of a block is trained: nothing that an earlier block has trained."""
        weights = {
            unit.weight: SoftWeight(self.traced.state[unit.weight], self.weights[unit.path], self.settings.start)
            for unit in block.units
            if _is_trained(self.subject.plan.weights.get(unit.path))
        }
        calls = {call for unit in block.units for call in unit.calls}
        biases = {
            unit.bias: self.traced.state[unit.bias]
            for unit in block.units
            if unit.weight in weights
            and unit.bias in self.leaves
            and calls.issuperset(reader.name for reader in self.traced.consumers(unit.bias))
        }
        return Parts(weights, biases, self._activations(block))

    def _activations(self, block: Block) -> list[LearnedActivation]:
        steps = {node.name for node in self.traced.steps[block.start : block.stop]}
        edges = [(reader, module) for (_, reader), module in self.activations.edges.items()]
        inside = {id(module): module for place, module in [*self.activations.sources.items(), *edges] if place in steps}
        return [each for each in inside.values() if isinstance(each, LearnedActivation) and each.step.requires_grad]

    def _keep(self, block: Block, found: Done) -> None:
        paths = {unit.weight: unit.path for unit in block.units}
        self.weights |= {paths[name]: weight for name, weight in found.weights.items()}
        self.biases |= found.biases
        self.costs.append((found.before, found.after))
        self._freeze(block)

    def _freeze(self, block: Block) -> None:
        for module in self._activations(block):
            module.step.requires_grad_(False)

    def _parameters(self) -> dict[str, Tensor]:
        """Every weight as it is now, and the biases that were learned."""
        found: dict[str, Tensor] = {}
        for unit in self.subject.units:
            known, weight = self.weights.get(unit.path), self.traced.state[unit.weight]
            cast = self.subject.plan.formats[unit.path].weight.cast(weight) if known is None else known.dequantize()
            if cast is not None:
                found[unit.weight] = cast.to(weight.device).contiguous(memory_format=order_of(weight))
        return {**found, **self.biases}

    def edits(self) -> Edits:
        return Edits(self.activations.sources, self.activations.edges, self._parameters())

    def _finished(self) -> Finished:
        return Finished(
            self.subject.key,
            self.subject.fingerprint,
            self.how,
            tuple(self.costs),
            {path: weight for path, weight in self.weights.items() if weight is not self.subject.plan.weights[path]},
            {name: bias.cpu() for name, bias in self.biases.items()},
            tuple(
                float(getattr(module, "step", torch.zeros(())).detach()) for module in self.activations.named.values()
            ),
        )

    def _resume(self, partial: Path) -> None:
        found = read_partial(partial)
        wanted = (self.subject.key, self.subject.fingerprint, self.how)
        if found is None or (found.policy, found.fingerprint, dict(found.settings)) != wanted:
            return
        self.weights |= found.weights
        self.biases |= {name: bias.to(self.device) for name, bias in found.biases.items()}
        for module, step in zip(self.activations.named.values(), found.steps, strict=True):
            if isinstance(module, LearnedActivation):
                with torch.no_grad():
                    module.step.fill_(step)
        self.costs += found.costs
        for block in self.blocks[: len(self.costs)]:
            self._freeze(block)


class _Judged:
    """The network as it is now, as a Judge runs it."""

    def __init__(self, network: _Reconstruction) -> None:
        self._network = network
        self.device = network.device

    def eval(self) -> None:
        """Nothing behaves differently in training."""

    def run(self, inputs: Sequence[Tensor]) -> Any:
        return self._network.traced.run(self._on(inputs), self._network.edits(), order=self._network.order)

    def reference(self, inputs: Sequence[Tensor]) -> Any:
        return self._network.traced.run(self._on(inputs), order=self._network.order)

    def _on(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.to(self.device) for tensor in inputs]


def _is_trained(weight: QuantizedWeight | None) -> bool:
    return weight is not None and learns_rounding(weight.type)


def _arranged(traced: TracedModel, order: torch.memory_format) -> TracedModel:
    """Return a copy of a graph whose tensors have the order in memory that is fastest."""
    state = traced.__getstate__()
    copy = object.__new__(TracedModel)
    copy.__setstate__({**state, "state": {name: ordered(tensor, order) for name, tensor in traced.state.items()}})
    return copy
