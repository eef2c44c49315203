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
_ROWS_AT_ONCE = 2048
"""All step sizes together: what a block of columns takes stays near the processor, and memory is bounded."""
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
    rows = len(weight)
    at_once = rows if len(moments.matrix) > 1 else max(_ROWS_AT_ONCE // len(steps), 1)
    parts = [slice(start, start + at_once) for start in range(0, rows, at_once)]
    absorbed = [_absorbed(weight[part], moments, found.rows(part), steps, scale_floor[part]) for part in parts]
    numbers, grids, errors = zip(*absorbed, strict=True)
    return torch.cat(numbers), Grid.joined(grids), torch.cat(errors)


def _absorbed(
    weight: Tensor, moments: Moments, found: Grid, steps: Sequence[float], scale_floor: Tensor
) -> tuple[Tensor, Grid, Tensor]:
    rows, length = weight.shape
    order = moments.order
    groups = len(order)
    tried = [found.scaled(factor, scale_floor) for factor in steps]
    ordered = _by_column(weight, groups).gather(1, order[:, :, None].expand(-1, -1, rows // groups))
    scales = _in_order([grid.scale for grid in tried], order)
    zeros = None if found.zero is None else _in_order([found.zero] * len(steps), order)
    types = [found.of_column(column) for column in order[0].tolist()]  # groups have one type
    rounded = _round_columns(ordered.repeat(1, 1, len(steps)), scales, zeros, moments.inverse_factor, types)
    numbers = torch.empty_like(rounded).scatter_(1, order[:, :, None].expand_as(rounded), rounded)
    by_step = numbers.reshape(groups, length, len(steps), -1).permute(2, 0, 3, 1)
    del ordered, rounded
    best_error, best, best_grid = torch.full((rows,), torch.inf, device=weight.device), weight, found
    for step, grid in enumerate(tried):
        each = by_step[step].reshape(rows, length)
        error = output_errors(_wrong_by(weight, each, grid), moments)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best, best_grid = torch.where(better[:, None], each, best), grid.where(better, best_grid)
    return best, best_grid, best_error


def _by_column(by_row: Tensor, groups: int) -> Tensor:
    """Return `[out, n]` as `[groups, n, out / groups]`."""
    return by_row.reshape(groups, -1, by_row.shape[1]).transpose(1, 2)


def _in_order(scales: Sequence[Tensor], order: Tensor) -> Tensor:
    """Return scales, each `[out]` or `[out, blocks]`, for each column in that order: `[groups, k, out / groups]` each,
    side by side.
    """
    groups, length = order.shape
    by_block = torch.cat([_by_column(each.reshape(len(each), -1), groups) for each in scales], dim=2)
    if scales[0].dim() == 1:
        return by_block.expand(-1, length, -1)
    block = order // (length // by_block.shape[1])
    return by_block.gather(1, block[:, :, None].expand(-1, -1, by_block.shape[2]))


def _wrong_by(weight: Tensor, numbers: Tensor, grid: Grid) -> Tensor:
    """Return the errors of a weight in units of a power of two: those of tiny weights would have no squares."""
    unit = -exponents(weight.abs().amax(dim=1, keepdim=True))
    return scaled_by_powers(numbers * grid.steps(weight.shape[1]) - weight, unit)


def _round_columns(
    weight: Tensor, scales: Tensor, zeros: Tensor | None, factor: Tensor, types: Sequence[NumberType]
) -> Tensor:
    """Round `[groups, k, rows]`, which is overwritten, to numbers in units of the step; `types` are of its columns.

    A column is given the errors of those before it when its turn comes, those of whole blocks of columns in one matrix
    product.
    """
    numbers = torch.empty_like(weight)
    length = weight.shape[1]
    for start in range(0, length, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, length)
        errors = torch.empty_like(weight[:, start:stop])
        for column in range(start, stop):
            before = factor[:, start:column, column, None].mT @ errors[:, : column - start]
            value = weight[:, column] - before[:, 0]
            step = scales[:, column]
            rounded = _rounded(value / step, None if zeros is None else zeros[:, column], types[column])
            numbers[:, column] = rounded
            errors[:, column - start] = (value - rounded * step) / factor[:, column, column, None]
        weight[:, stop:] -= factor[:, start:stop, stop:].mT @ errors
    return numbers


def _rounded(steps: Tensor, zero: Tensor | None, grid: NumberType) -> Tensor:
    if zero is None:
        return grid.round_(steps, *grid.limits)
    return grid.round_(steps.add_(zero), *grid.limits).sub_(zero)
