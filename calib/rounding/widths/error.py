"""Widths by what they leave of a layer's error: ours."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.mixed_widths import WIDTHS, bits_of_blocks
from calib.rounding.base import Moments
from calib.rounding.widths.base import errors_of_width, weights_of_errors, width_rule


@width_rule("error")
def widths_by_error(weight: Tensor, moments: Moments, average: float, block: int) -> tuple[int, ...]:
    """Minimise the sum over weights of (w - q(w))^2 / U_jj^2, with U as for the salience; ours.

    That is what rounding column j changes of the output once the columns behind it have absorbed what they can (Frantar
    et al., arXiv 2210.17323, eq. 3, summed). Each block is rounded to nearest alone in every width of `WIDTHS`. The
    best sum under the given bits is found exactly, by dynamic programming over the blocks.
    """
    importance, rows = weights_of_errors(weight, moments), len(weight)
    costs = []
    for width in WIDTHS:
        errors = errors_of_width(weight, importance, width, block).square().double() * importance.double()
        costs.append(errors.reshape(rows, -1, block).sum(dim=(0, 2)))
    of_blocks = torch.stack(costs, dim=1).tolist()
    return cheapest(of_blocks, bits_of_blocks(average, len(of_blocks)))


def cheapest(costs: list[list[float]], bits: int) -> tuple[int, ...]:
    """Return the widths of least cost whose sum is `bits`; `costs` by block, of each width of `WIDTHS`.

    Sums that cannot be reached do not occur: `bits` is between one and eight for each block.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for row in costs:
        found: dict[int, tuple[float, tuple[int, ...]]] = {}
        for spent, (cost, widths) in best.items():
            for width, more in zip(WIDTHS, row, strict=True):
                total = spent + width
                if total <= bits and (total not in found or cost + more < found[total][0]):
                    found[total] = cost + more, (*widths, width)
        best = found
    return best[bits][1]
