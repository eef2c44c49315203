"""GPTQ: round column by column and let the columns that are left absorb each error."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.rounding.base import Moments, are_worse, exponents, output_errors, rounding, scaled_by_powers
from calib.rounding.grids import Grid, search_grid
from calib.rounding.nearest import plain_moments

_COLUMNS_AT_ONCE = 128
_STEPS = (1.0, 0.7, 0.8, 0.9, 1.1, 1.2, 1.35)
"""Step sizes that are tried, as multiples of the one found for rounding to nearest."""
_NO_SEARCH_FROM = 7
"""Bits from which on clipping hardly matters and one step size is enough."""


@rounding("gptq")
def round_gptq(
    weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor
) -> QuantizedWeight:
    """Minimise the error of the layer's output, second moments H of the layer's *float* inputs given.

    Frantar et al., arXiv 2210.17323, algorithm 1, with: 1 % diagonal damping; columns in order of falling diag(H); the
    groups of a grouped convolution solved side by side. Ours: below 7 bits every row is rounded with seven step sizes
    around the one that a clip search weighted with diag(H) finds, and keeps the one whose output error e H e' is
    smallest. The columns that absorb an error want another range than rounding to nearest does: at 2 bits that is most
    of what can be gained. A row that rounding to nearest leaves with a smaller error of the output is rounded to
    nearest: of a layer whose inputs are nearly always zero, damping alone decides what GPTQ does.
    """
    rows, length = weight.shape
    groups = moments.matrix.shape[0]
    found = search_grid(weight, moments, grid, block, scale_floor)
    order, factor = moments.order, moments.inverse_factor
    by_row = order.repeat_interleave(rows // groups, dim=0)
    unit = -exponents(weight.abs().amax(dim=1, keepdim=True))  # errors of tiny weights would have no squares

    def in_order(each: Tensor) -> Tensor:
        return each.expand(rows, length).gather(1, by_row).reshape(groups, -1, length)

    def wrong_by(numbers: Tensor, chosen: Grid) -> Tensor:
        return scaled_by_powers(numbers * chosen.steps(length) - weight, unit)

    ordered, zeros = in_order(weight), found.zeros(length)
    offsets = None if zeros is None else in_order(zeros)
    best_error, best, best_grid = torch.full((rows,), torch.inf, device=weight.device), weight, found
    for factor_of_step in _STEPS if grid.bits < _NO_SEARCH_FROM else (1.0,):
        tried = found.scaled(factor_of_step, scale_floor)
        rounded = _round_columns(ordered, in_order(tried.steps(length)), offsets, factor, grid).reshape(rows, length)
        numbers = torch.empty_like(rounded).scatter_(1, by_row, rounded)
        error = output_errors(wrong_by(numbers, tried), moments)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best, best_grid = torch.where(better[:, None], numbers, best), tried.where(better, best_grid)
    nearest = found if grid.one_scale else search_grid(weight, plain_moments(moments), grid, block, scale_floor)
    numbers = nearest.nearest(weight)
    worse = are_worse(wrong_by(best, best_grid), wrong_by(numbers, nearest), moments) | ~torch.isfinite(best_error)
    return nearest.where(worse, best_grid).weight(torch.where(worse[:, None], numbers, best))


def _round_columns(weight: Tensor, step: Tensor, zero: Tensor | None, factor: Tensor, grid: NumberType) -> Tensor:
    """Round `[groups, rows, k]` to numbers in units of the step; a block of columns at a time, so that most of the
    updates are matrix products.
    """
    weight = weight.clone()
    numbers = torch.empty_like(weight)
    length = weight.shape[2]
    for start in range(0, length, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, length)
        errors = torch.empty_like(weight[:, :, start:stop])
        for column in range(start, stop):
            value = weight[:, :, column]
            rounded = _rounded(value / step[:, :, column], None if zero is None else zero[:, :, column], grid)
            numbers[:, :, column] = rounded
            error = (value - rounded * step[:, :, column]) / factor[:, None, column, column]
            errors[:, :, column - start] = error
            weight[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, None, column, column + 1 : stop]
        weight[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return numbers


def _rounded(steps: Tensor, zero: Tensor | None, grid: NumberType) -> Tensor:
    if zero is None:
        return grid.round_(steps, *grid.limits)
    return grid.round_(steps.add_(zero), *grid.limits).sub_(zero)
