"""One block in training: its roundings, steps and biases, moved until it gives what the float block gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.formats.quantizers import QuantizedWeight
from calib.network.execution import NO_EDITS, Edit, Edits
from smpq.reconstruction.blocks import Block
from smpq.reconstruction.losses.base import LOSSES
from smpq.reconstruction.rounding import SoftWeight
from smpq.reconstruction.sensitivities import sensitivities
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.reconstruction.walk import Rows, Walk
from smpq.training.lsq import LearnedActivation
from smpq.value.divergence import TaskDivergence

_WARM_UP = 0.2
"""Share of the iterations without a pull to whole integers."""
_STEEPEST, _FLATTEST = 20.0, 2.0
_SMALLEST_BETA_SHARE = 1e-6
_JUDGED = 256
"""Samples that a block's error is told of."""


@dataclass(frozen=True)
class Parts:
    """What is trained in a block: weights by the graph name of the weight, biases by theirs, steps of activations."""

    weights: Mapping[str, SoftWeight]
    biases: Mapping[str, Tensor]
    activations: Sequence[LearnedActivation]


@dataclass(frozen=True)
class Surroundings:
    """What stands around and in a block and is not trained with it."""

    parameters: Mapping[str, Tensor]
    sources: Mapping[str, Edit]
    edges: Mapping[tuple[str, str], Edit]


@dataclass(frozen=True)
class Done:
    """A block that was trained: integers by weight, biases, and its mean squared error with whole integers, on what the
    quantised network gives it, before and after: the same where it went back to where it began.
    """

    weights: Mapping[str, QuantizedWeight]
    biases: Mapping[str, Tensor]
    before: float
    after: float


def train_block(
    walk: Walk,
    block: Block,
    parts: Parts,
    around: Surroundings,
    float_rows: Rows,
    rows: Rows,
    targets: Rows,
    settings: ReconstructionSettings,
    generator: torch.Generator,
    divergence: TaskDivergence,
    tick: Callable[[], None],
) -> Done:
    """Train the parts of a block. `float_rows` and `rows` are what the float and the quantised network give it,
    `targets` what the float block makes of the first.

    Adam, on `settings.batch` samples at a time, with what the block reads drawn from both networks as
    `settings.drop` says. A block that costs more afterwards, with whole integers and on what the quantised network
    gives it, goes back to where it began. UserError when the error is not a number any more.
    """
    spreads = _spreads(walk, block, float_rows, parts)
    moved = {name: nn.Parameter(torch.zeros_like(bias)) for name, bias in parts.biases.items()}

    def biases() -> dict[str, Tensor]:
        return {name: bias + spreads[name] * moved[name] for name, bias in parts.biases.items()}

    def edits(drop: float, *, whole: bool = False) -> Edits:
        weights = {name: weight.whole() if whole else weight() for name, weight in parts.weights.items()}
        learned = {id(module) for module in parts.activations}

        def edit(known: Edit) -> Edit:
            return _dropped(known, drop, generator) if drop and id(known) in learned else known

        kept: dict[int, Edit] = {}  # equal edits stay one object: what they make is shared
        sources = {name: kept.setdefault(id(known), edit(known)) for name, known in around.sources.items()}
        edges = {place: kept.setdefault(id(known), edit(known)) for place, known in around.edges.items()}
        return Edits(sources, edges, {**around.parameters, **weights, **biases()})

    def judged() -> tuple[float, float]:
        """Return what is minimised, and the mean squared error."""
        cost, error, count = 0.0, 0.0, min(walk.count, max(_JUDGED // walk.size, 1) * walk.size)
        with torch.no_grad():
            for index in torch.arange(count).split(walk.size):
                made = walk.run(block, walk.taken(rows, index), edits(0.0, whole=True)).values
                wanted = walk.taken(targets, index)
                errors = {name: made[name] - wanted[name] for name in block.outputs}
                cost += sum(float(loss(errors[name], index)) for name, loss in losses.items()) * len(index) / count
                squares = [each.square().mean() for each in errors.values()]
                error += float(torch.stack(squares).sum()) * len(index) / count
        return cost, error

    optimizer = torch.optim.Adam(
        [
            {"params": [weight.variables for weight in parts.weights.values()], "lr": settings.rate},
            *_decaying(parts, moved, settings),
        ],
        lr=settings.rate,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    variables = [variable for group in optimizer.param_groups for variable in group["params"]]
    start = _values(variables)
    losses = {name: LOSSES[settings.loss].make(block.channel_axis(targets[name].shape)) for name in block.outputs}
    refresh = _refreshes(settings)
    for iteration in range(settings.iterations):
        if iteration in refresh:
            seen, _ = sensitivities(walk, block, edits(0.0), float_rows, targets, divergence)
            for name, loss in losses.items():
                loss.learn(seen[name])
        for group, rate in zip(optimizer.param_groups[1:], rates[1:], strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * iteration / settings.iterations)) / 2
        share = settings.drop * (1 - iteration / settings.iterations)
        index = torch.randperm(walk.count, generator=generator)[: walk.size]
        wanted, read = walk.taken(targets, index), walk.taken(rows, index)
        whole = walk.taken(float_rows, index) if share else read
        given = {name: _mixed(whole[name], read[name], share, generator) for name in rows}
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            made = walk.run(block, given, edits(settings.drop)).values
            cost = sum(loss(made[name] - wanted[name], index) for name, loss in losses.items())
            assert isinstance(cost, Tensor)
            pull = _pull(parts, iteration, settings)
            (cost + pull if pull is not None else cost).backward()
        value = float(cost.detach())
        if not math.isfinite(value):
            raise UserError(
                f"the reconstruction diverged after {iteration} iterations of a block: use a smaller --rounding-rate "
                f"(now {settings.rate})"
            )
        optimizer.step()
        for activation in parts.activations:
            activation.project()
        tick()
    before, after = _settle(variables, start, judged)
    return Done(
        {name: weight.hard() for name, weight in parts.weights.items()},
        {name: bias.detach() for name, bias in biases().items()},
        before,
        after,
    )


def _settle(
    variables: Sequence[Tensor], start: Sequence[Tensor], judged: Callable[[], tuple[float, float]]
) -> tuple[float, float]:
    """Set variables back to their start where that costs less, or where they cost no number; return the errors at the
    start and now.
    """
    end, (reached, after) = _values(variables), judged()
    _set(variables, start)
    began, before = judged()
    if not reached <= began:
        return before, before
    _set(variables, end)
    return before, after


def _values(variables: Sequence[Tensor]) -> list[Tensor]:
    return [variable.detach().clone() for variable in variables]


def _set(variables: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for variable, value in zip(variables, values, strict=True):
            variable.copy_(value)


def _decaying(
    parts: Parts, moved: Mapping[str, nn.Parameter], settings: ReconstructionSettings
) -> list[dict[str, Any]]:
    steps = [weight.stretch for weight in parts.weights.values() if weight.stretch.requires_grad]
    groups = [
        {"params": steps, "lr": settings.step_rate},
        {"params": list(moved.values()), "lr": settings.bias_rate},
        *[
            {"params": [module.step], "lr": settings.activation_rate * float(module.step.detach())}
            for module in parts.activations
        ],
    ]
    return [group for group in groups if group["params"]]


def _refreshes(settings: ReconstructionSettings) -> set[int]:
    times = LOSSES[settings.loss].times
    return {number * settings.iterations // times for number in range(times)}


def _pull(parts: Parts, iteration: int, settings: ReconstructionSettings) -> Tensor | None:
    done = iteration / settings.iterations
    if done < _WARM_UP or not settings.regulariser or not parts.weights:
        return None
    left = 1 - (done - _WARM_UP) / (1 - _WARM_UP)
    beta = _FLATTEST + (_STEEPEST - _FLATTEST) * max(left, _SMALLEST_BETA_SHARE)
    return settings.regulariser * torch.stack([weight.pull(beta) for weight in parts.weights.values()]).sum()


def _mixed(whole: Tensor, quantized: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Return what a block reads: element by element of the float or the quantised network (QDrop, Wei et al., arXiv
    2203.05740).
    """
    if not drop or not whole.is_floating_point():
        return quantized
    return torch.where(_chance(whole, drop, generator), whole, quantized)


def _dropped(quantizer: Edit, drop: float, generator: torch.Generator) -> Edit:
    return lambda tensor: torch.where(_chance(tensor, drop, generator), tensor, quantizer(tensor))


def _chance(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=generator) < share
    return drawn.to(like.device)


def _spreads(walk: Walk, block: Block, float_rows: Rows, parts: Parts) -> dict[str, Tensor]:
    """Return by bias the standard deviation of what its layer gives in float, one number."""
    calls = {unit.calls[0]: unit.bias for unit in block.units if unit.bias in parts.biases}
    found: dict[str, Tensor] = {}

    def note(name: str, tensor: Tensor) -> None:
        bias = calls.get(name)
        if bias is not None:
            found[bias] = tensor.std()

    piece = next(walk.pieces())
    with torch.no_grad():
        walk.run(block, walk.taken(float_rows, piece), NO_EDITS, observe=note)
    return {bias: found.get(bias, torch.ones(())) for bias in parts.biases}
