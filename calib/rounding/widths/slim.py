"""Widths of SliM-LLM: one bit from the least salient blocks to the most salient ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calib.formats.mixed_widths import WIDTHS, bits_of_blocks
from calib.formats.zero_points import zero_point
from calib.rounding.base import Moments, output_errors
from calib.rounding.grids import ranged
from calib.rounding.widths.base import salience, width_rule


@width_rule("slim")
def widths_of_slim(weight: Tensor, moments: Moments, average: float, block: int) -> tuple[int, ...]:
    """Search how many of the least and the most salient blocks have a bit less and a bit more.

    Huang et al., SliM-LLM, arXiv 2405.14917, salience-determined bit allocation: the salience of a block is the sum of
    W_ij^2 / U_jj^2; for i = 0, 1, ... the i least salient blocks have N - 1 bits and the i most salient ones N + 1; all
    blocks are rounded to the nearest on the range of their weights, and the i with the least error is taken.

    Deviations: the error is that of the layer's output, e H e', not the divergence of its softmax, for which the inputs
    would have to be kept (on a model of 260,000 parameters at 2 and 3 bits, with two roundings, the divergence chose
    better once and worse three times); i = 0 is tried, and i up to half of the blocks (their code ends one earlier);
    blocks of one bit have two values around zero, not around their mean; and an average N + f that is not whole gives
    N + 1 bits to the most salient blocks of i = 0.
    """
    blocks = weight.shape[1] // block
    by_salience = salience(weight, moments).reshape(len(weight), blocks, block).double().sum(dim=(0, 2)).argsort()
    base = math.floor(average)
    start = torch.full((blocks,), base, dtype=torch.int64)
    more = bits_of_blocks(average, blocks) - base * blocks
    start[by_salience[blocks - more :].cpu()] += 1
    best, least = start, math.inf
    for moved in range(blocks // 2 + 1):
        widths = start.clone()
        widths[by_salience[:moved].cpu()] -= 1
        widths[by_salience[blocks - moved :].cpu()] += 1
        if int(widths.min()) < WIDTHS[0] or int(widths.max()) > WIDTHS[-1]:
            break
        error = float(output_errors(_rounded(weight, widths.tolist(), block) - weight, moments).double().sum())
        if error < least:
            best, least = widths, error
    return tuple(best.tolist())


def _rounded(weight: Tensor, widths: list[int], block: int) -> Tensor:
    parts = []
    for part, width in zip(weight.split(block, dim=1), widths, strict=True):
        type_ = zero_point(width)
        scale, zero = (each[:, None] for each in ranged(part, type_))
        parts.append((type_.round_(part / scale + zero, *type_.limits) - zero) * scale)
    return torch.cat(parts, dim=1)
