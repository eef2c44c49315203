"""SliM-LLM's rounding: ranges near those of the weights of each block, then GPTQ."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.rounding.base import Moments, in_unit_powers, rounding, search_scales, smallest_scales
from calib.rounding.gptq import absorb_errors
from calib.rounding.grids import Grid, grid_by_block, ranged

_SPREAD, _STEPS = 0.1, 50
"""Ranges from 0.9 to 1.1 of that of the weights, 50 steps to either side."""
_POWER = 2.4


@rounding("slim")
def round_slim(
    weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor
) -> QuantizedWeight:
    """Search a range for each row of each block near that of its weights, and round by GPTQ.

    Huang et al., SliM-LLM, arXiv 2405.14917, salience-weighted quantizer calibration: the range of the weights is
    multiplied by 0.9 to 1.1, and the sum of |w - q(w)|^2.4 is minimised, that of salient weights times lambda. Their
    lambda is 1, with which salient weights count as all others: none are told apart here. GPTQ (arXiv 2210.17323,
    algorithm 1) then rounds with these steps alone.

    Deviations: layers are rounded on float inputs, columns in the order of falling second moments, and blocks keep the
    ranges of the float weights (their code takes those of the weights that have absorbed errors). Types without zero
    points have no such range: they take the steps of `calib.rounding.base.search_scales`.
    """
    if not grid.zero_points:
        found = Grid(grid, block, search_scales(weight, moments, grid, block, scale_floor))
    else:

        def search(columns: slice, own: NumberType) -> tuple[Tensor, Tensor]:
            return _near_the_range(weight[:, columns], own, scale_floor)

        found = grid_by_block(weight.shape[1], grid, block, search)
    numbers, found, _ = absorb_errors(weight, moments, found, (1.0,), scale_floor)
    return found.weight(numbers)


def _near_the_range(weight: Tensor, type_: NumberType, scale_floor: Tensor) -> tuple[Tensor, Tensor]:
    """Return step and zero point `[rows]` of a block `[rows, k]`."""
    used = weight.abs().amax(dim=1) > 0
    weight, floor, powers = in_unit_powers(weight, scale_floor)
    step, zero = ranged(weight, type_)
    best, best_error = step, torch.full_like(step, torch.inf)
    for share in torch.linspace(1 - _SPREAD, 1 + _SPREAD, 2 * _STEPS + 1).tolist():
        scale = torch.maximum(type_.held(step * share), floor)
        numbers = type_.round_(weight / scale[:, None] + zero[:, None], *type_.limits) - zero[:, None]
        error = (numbers * scale[:, None] - weight).abs().pow(_POWER).sum(dim=1)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return smallest_scales(best, used, powers, scale_floor), zero
