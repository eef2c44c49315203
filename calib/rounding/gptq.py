"""GPTQ: round column by column and let the columns that are left absorb each error."""

from __future__ import annotations

from collections.abc import Sequence

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
    found = search_grid(weight, moments, grid, block, scale_floor)
    steps = _STEPS if grid.bits < _NO_SEARCH_FROM else (1.0,)
    numbers, chosen, error = absorb_errors(weight, moments, found, steps, scale_floor)
    plain = found if grid.one_scale else search_grid(weight, plain_moments(moments), grid, block, scale_floor)
    nearest = plain.nearest(weight)
    worse = are_worse(_wrong_by(weight, numbers, chosen), _wrong_by(weight, nearest, plain), moments)
    worse |= ~torch.isfinite(error)
    return plain.where(worse, chosen).weight(torch.where(worse[:, None], nearest, numbers))


def absorb_errors(
    weight: Tensor, moments: Moments, found: Grid, steps: Sequence[float], scale_floor: Tensor
) -> tuple[Tensor, Grid, Tensor]:
    """Return numbers `[out, k]` of `weight` in units of the step, their grid, and the errors of the output `[out]`.

    Algorithm 1 on `found` with its steps times each of `steps`; each row keeps the one with the smallest error.
    """
    rows, length = weight.shape
    groups = moments.matrix.shape[0]
    order, factor = moments.order, moments.inverse_factor
    by_row = order.repeat_interleave(rows // groups, dim=0)

    def in_order(each: Tensor) -> Tensor:
        return each.expand(rows, length).gather(1, by_row).reshape(groups, -1, length)

    ordered, zeros = in_order(weight), found.zeros(length)
    offsets = None if zeros is None else in_order(zeros)
    types = [found.of_column(column) for column in order[0].tolist()]  # blocks are for one group
    best_error, best, best_grid = torch.full((rows,), torch.inf, device=weight.device), weight, found
    for factor_of_step in steps:
        tried = found.scaled(factor_of_step, scale_floor)
        rounded = _round_columns(ordered, in_order(tried.steps(length)), offsets, factor, types).reshape(rows, length)
        numbers = torch.empty_like(rounded).scatter_(1, by_row, rounded)
        error = output_errors(_wrong_by(weight, numbers, tried), moments)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best, best_grid = torch.where(better[:, None], numbers, best), tried.where(better, best_grid)
    return best, best_grid, best_error


def _wrong_by(weight: Tensor, numbers: Tensor, grid: Grid) -> Tensor:
    """Return the errors of a weight in units of a power of two: those of tiny weights would have no squares."""
    unit = -exponents(weight.abs().amax(dim=1, keepdim=True))
    return scaled_by_powers(numbers * grid.steps(weight.shape[1]) - weight, unit)


def _round_columns(
    weight: Tensor, step: Tensor, zero: Tensor | None, factor: Tensor, types: Sequence[NumberType]
) -> Tensor:
    """Round `[groups, rows, k]` to numbers in units of the step; a block of columns at a time, so that most of the
    updates are matrix products. `types` are those of the columns.
    """
    weight = weight.clone()
    numbers = torch.empty_like(weight)
    length = weight.shape[2]
    for start in range(0, length, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, length)
        errors = torch.empty_like(weight[:, :, start:stop])
        for column in range(start, stop):
            value = weight[:, :, column]
            rounded = _rounded(value / step[:, :, column], None if zero is None else zero[:, :, column], types[column])
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
