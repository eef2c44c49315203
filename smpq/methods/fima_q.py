"""FIMA-Q's approximation of the Fisher information as a score: what the error of a block costs the output."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from smpq.methods.base import Need, method
from smpq.methods.problem import Objective, SearchProblem, linear_objective

if TYPE_CHECKING:
    from torch import Tensor

    from calib.formats.format import Format
    from calib.network.execution import Edits
    from smpq.reconstruction.blocks import Block
    from smpq.reconstruction.losses.base import Sensitivity
    from smpq.reconstruction.losses.fima_q import LowRankFisher
    from smpq.reconstruction.walk import Rows, Walk
    from smpq.value.divergence import TaskDivergence

_SAMPLES_AT_ONCE = 32


@method(
    "fima-q",
    paper="the loss of FIMA-Q, Wu et al. CVPR 2025 (arXiv 2506.11543)",
    cost="two for each block and format, and less than one for each layer and format",
    needs=(Need.GRADIENTS,),
)
def fima_q(problem: SearchProblem) -> Objective:
    """Cost of the error that a layer's format makes in the output of its block, by a Fisher information of low rank.

    Blocks are those of a reconstruction. For each format that is offered, a block with all its layers in it, everything
    else float, gives a pair of its error and the gradient of the output's divergence: of them FIMA-Q's two parts are
    made, the low rank and the diagonal. The score of a layer in a format is minus the mean of both for the error of
    that layer alone. Each is scaled so that on the pairs it comes to the divergence that was measured: scores of
    different blocks are in one unit, the task's divergence. No labels are needed. The use as a score is ours; the paper
    has the loss. The standard error is that over parts of the samples.
    """
    from calib.network.execution import Edits
    from smpq.reconstruction.blocks import find_blocks
    from smpq.reconstruction.walk import Walk
    from smpq.training.placing import batch_on, graph_on
    from smpq.value.divergence import TaskDivergence

    traced = graph_on(problem.traced, problem.device)
    units = problem.space.units
    blocks = find_blocks(problem.traced, units)
    apart = TaskDivergence(problem.task)
    batches = [batch_on(batch, problem.device) for batch in problem.judging]
    if not apart.takes_target:
        batches = [batch._replace(target=None) for batch in batches]
    count = sum(len(batch.inputs[0]) for batch in batches)
    fixed = None if traced.dynamic_batch else len(traced.example[0])
    walk = Walk(traced, blocks, batches, count, fixed or _SAMPLES_AT_ONCE)
    costs: dict[tuple[str, Format], list[float]] = {}
    rows = walk.begin()
    with problem.progress.bar("Fisher", len(blocks)) as advance:
        for block in blocks:
            targets = walk.through(block, rows, Edits())
            for move, parts in _costs(problem, walk, block, rows, targets, apart).items():
                known = costs.setdefault(move, [0.0] * len(parts))
                costs[move] = [a + b for a, b in zip(known, parts, strict=True)]
            rows = targets
            advance()
    samples = {move: [-each for each in parts] for move, parts in costs.items()}
    return linear_objective(
        problem,
        samples,
        estimator="FIMA-Q",
        value_name="minus the divergence",
        random=len(next(iter(samples.values()), ())) > 1,
        stop_reason="all layers",
    )


def _costs(
    problem: SearchProblem, walk: Walk, block: Block, rows: Rows, targets: Rows, apart: TaskDivergence
) -> dict[tuple[str, Format], list[float]]:
    """Return by move what it costs in this block, on each part of the samples; moves of layers that are not used in it
    are not named.
    """
    import torch

    from smpq.reconstruction.losses.fima_q import LowRankFisher
    from smpq.reconstruction.sensitivities import sensitivities

    space = problem.space
    inside = {node.name for node in walk.traced.steps[block.start : block.stop]}
    own = [group for group in space.groups if any(not inside.isdisjoint(unit.uses) for unit in group.units)]
    offered = dict.fromkeys(chosen for group in own for chosen in space.formats[group.name])
    fisher = LowRankFisher()
    errors: list[list[Tensor]] = []
    measured: list[float] = []
    for chosen in offered:
        if chosen == space.reference:
            continue
        of_all = {group.name: chosen for group in own if chosen in space.formats[group.name]}
        seen, cost = sensitivities(walk, block, _edits(problem, of_all), rows, targets, apart)
        runs = _joined(seen)
        errors.append([each.error for each in runs])
        measured.append(cost)
        fisher.learn(runs)
    if not errors:
        return {}
    scales = _scales(fisher, errors, measured)
    found: dict[tuple[str, Format], list[float]] = {}
    for group in own:
        for chosen in space.formats[group.name]:
            if chosen == space.reference:
                continue
            edits, costs = _edits(problem, {group.name: chosen}), []
            for piece in walk.pieces():
                with torch.no_grad():
                    made = walk.run(block, walk.taken(rows, piece), edits).values
                expected = walk.taken(targets, piece)
                parts = fisher.parts(_in_a_row([made[name] - expected[name] for name in block.outputs]))
                costs.append(sum(float(part) * scale for part, scale in zip(parts, scales, strict=True)))
            found[group.name, chosen] = costs
    return found


def _scales(fisher: LowRankFisher, errors: list[list[Tensor]], measured: list[float]) -> tuple[float, float]:
    """Return factors by which each part gives half of the mean divergence on the errors that were learned."""
    parts = [[float(part) for part in fisher.parts(each)] for runs in errors for each in runs]
    means = [statistics.fmean(column) for column in zip(*parts, strict=True)]
    half = statistics.fmean(measured) / 2
    low_rank, diagonal = (half / mean if mean > 0 else 0.0 for mean in means)
    return low_rank, diagonal


def _edits(problem: SearchProblem, formats: Mapping[str, Format]) -> Edits:
    """Return the edits of the policy in which these groups have these formats and all others are float."""
    policy = problem.space.uniform(problem.space.reference)
    policy = replace(policy, formats={**policy.formats, **formats})
    fake = problem.fake_quantizer
    edits = fake.edits(fake.plan(policy.by_unit(problem.space.groups), policy.float_joins))
    placed = {name: tensor.to(problem.device) for name, tensor in edits.parameters.items()}
    return replace(edits, parameters=placed)


def _joined(seen: Mapping[str, Iterable[Sensitivity]]) -> list[Sensitivity]:
    """Return the sensitivities of several outputs as those of one."""
    return [
        replace(
            each[0],
            gradient=_in_a_row([one.gradient for one in each]),
            error=_in_a_row([one.error for one in each]),
        )
        for each in zip(*seen.values(), strict=True)
    ]


def _in_a_row(tensors: list[Tensor]) -> Tensor:
    """Return `[n, values]` of tensors `[n, ...]`."""
    import torch

    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
