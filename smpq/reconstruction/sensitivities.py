"""What a quantised block does to the output of a network whose other blocks are float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from calib.errors import UserError
from calib.network.execution import Edits
from smpq.reconstruction.blocks import Block
from smpq.reconstruction.losses.base import Sensitivity
from smpq.reconstruction.walk import Rows, Walk
from smpq.value.divergence import TaskDivergence

_GRADIENT = "gradient of "


class Seen:
    """What each run says of one output of a block, as often as it is gone through.

    Gradients and errors are kept as rows are: in files, where they take more than the walk may.
    """

    def __init__(self, walk: Walk, gradients: Tensor, errors: Tensor) -> None:
        self._walk = walk
        self._rows = gradients, errors

    def __iter__(self) -> Iterator[Sensitivity]:
        for piece in self._walk.pieces():
            own = slice(int(piece[0]), int(piece[-1]) + 1)  # an index would give another order in memory
            gradient, error = (rows[own].to(self._walk.inputs[0].device) for rows in self._rows)
            yield Sensitivity(gradient, error, piece)


def sensitivities(
    walk: Walk, block: Block, edits: Edits, float_rows: Rows, targets: Rows, divergence: TaskDivergence
) -> tuple[Mapping[str, Seen], float]:
    """Return what each run over the samples says of the block's outputs, by their name, and the mean divergence of the
    network's output from the float one.

    `float_rows` are what the float network gives the block, `targets` what the float block makes of it.
    """
    rooms: dict[str, Tensor] = {}
    frozen = Edits(edits.sources, edits.edges, {name: tensor.detach() for name, tensor in edits.parameters.items()})
    total = 0.0
    for piece in walk.pieces():
        behind = walk.taken(targets, piece)
        with torch.no_grad():
            values = walk.run(block, walk.taken(float_rows, piece), frozen).values
        leaves = {name: values[name].detach().clone().requires_grad_() for name in block.outputs}
        with torch.enable_grad():
            output = walk.finish(block, {**values, **behind}, leaves)
            apart = torch.as_tensor(divergence(output, walk.expected(piece), walk.target(piece))).sum()
        if not apart.requires_grad:
            raise UserError(
                "the divergence of the network's output cannot be differentiated: compute it with torch from the "
                "output as given, or use a --loss or --method that needs no gradients"
            )
        gradients = torch.autograd.grad(apart, list(leaves.values()), materialize_grads=True)
        total += float(apart.detach())
        found = {_GRADIENT + name: gradient.detach() for name, gradient in zip(leaves, gradients, strict=True)}
        found |= {name: leaf.detach() - behind[name] for name, leaf in leaves.items()}
        rooms = rooms or walk.room(found)
        for name, rows in found.items():
            rooms[name][int(piece[0]) : int(piece[-1]) + 1] = rows
    return {name: Seen(walk, rooms[_GRADIENT + name], rooms[name]) for name in block.outputs}, total / walk.count
