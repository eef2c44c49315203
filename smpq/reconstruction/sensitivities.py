"""What a quantised block does to the output of a network whose other blocks are float."""

from __future__ import annotations

import torch

from calib.network.execution import Edits
from smpq.reconstruction.blocks import Block
from smpq.reconstruction.losses.base import Sensitivity
from smpq.reconstruction.walk import Rows, Walk
from smpq.value.divergence import TaskDivergence


def sensitivities(
    walk: Walk, block: Block, edits: Edits, float_rows: Rows, targets: Rows, divergence: TaskDivergence
) -> tuple[dict[str, list[Sensitivity]], float]:
    """Return what each run over the samples says of the block's outputs, by their name, and the mean divergence of the
    network's output from the float one.

    `float_rows` are what the float network gives the block, `targets` what the float block makes of it.
    """
    seen: dict[str, list[Sensitivity]] = {name: [] for name in block.outputs}
    frozen = Edits(edits.sources, edits.edges, {name: tensor.detach() for name, tensor in edits.parameters.items()})
    total = 0.0
    for piece in walk.pieces():
        behind = walk.taken(targets, piece)
        with torch.no_grad():
            values = walk.run(block, walk.taken(float_rows, piece), frozen).values
        leaves = {name: values[name].detach().clone().requires_grad_() for name in block.outputs}
        with torch.enable_grad():
            apart = divergence(walk.finish(block, behind, leaves), walk.expected(piece), walk.target(piece)).sum()
        gradients = torch.autograd.grad(apart, list(leaves.values()), materialize_grads=True)
        total += float(apart.detach())
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            seen[name].append(Sensitivity(gradient.detach(), leaf.detach() - behind[name], piece))
    return seen, total / walk.count
