"""GPTQ: round column by column and let the columns that are left absorb each error."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.rounding.base import Moments, are_worse, exponents, output_errors, rounding, scaled_by_powers, search_scales
from calib.rounding.nearest import round_nearest

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
    found = search_scales(weight, moments, grid, block, scale_floor)
    order, factor = moments.order, moments.inverse_factor
    by_row = order.repeat_interleave(rows // groups, dim=0)
    ordered = weight.gather(1, by_row).reshape(groups, -1, length)
    unit = -exponents(weight.abs().amax(dim=1, keepdim=True))  # errors of tiny weights would have no squares

    def wrong_by(values: Tensor, scale: Tensor) -> Tensor:
        return scaled_by_powers(values * _by_column(scale, length) - weight, unit)

    floor = scale_floor if block is None else scale_floor[:, None]
    best_error, best_values, best_scale = torch.full((rows,), torch.inf, device=weight.device), weight, found
    for factor_of_step in _STEPS if grid.bits < _NO_SEARCH_FROM else (1.0,):
        scale = torch.maximum(found * factor_of_step, floor)
        steps = _by_column(scale, length).expand(rows, length).gather(1, by_row).reshape(groups, -1, length)
        rounded = _round_columns(ordered, steps, factor, grid).reshape(rows, length)
        values = torch.empty_like(rounded).scatter_(1, by_row, rounded)
        error = output_errors(wrong_by(values, scale), moments)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_values, best_scale = _chosen(better, (values, scale), (best_values, best_scale))
    if grid.one_scale:
        values, scale = grid.round_(weight / found[:, None], *grid.limits), found
    else:
        nearest = round_nearest(weight, moments, grid, block, scale_floor)
        values, scale = nearest.values.float(), nearest.scale
    worse = are_worse(wrong_by(best_values, best_scale), wrong_by(values, scale), moments) | ~torch.isfinite(best_error)
    best_values, best_scale = _chosen(worse, (values, scale), (best_values, best_scale))
    return QuantizedWeight(grid, grid.stored(best_values), best_scale, block)


def _by_column(scale: Tensor, length: int) -> Tensor:
    """Return the step of each weight, `[out, 1]` or `[out, k]`."""
    return scale[:, None] if scale.dim() == 1 else scale.repeat_interleave(length // scale.shape[1], dim=1)


def _chosen(rows: Tensor, ours: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return values and steps: `ours` in some rows, those of `others` in the rest."""
    one, two = (torch.where(rows.reshape(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(ours, others, strict=True))
    return one, two


def _round_columns(weight: Tensor, step: Tensor, factor: Tensor, grid: NumberType) -> Tensor:
    """Round `[groups, rows, k]`; a block of columns at a time, so that most of the updates are matrix products."""
    weight = weight.clone()
    values = torch.empty_like(weight)
    length = weight.shape[2]
    for start in range(0, length, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, length)
        errors = torch.empty_like(weight[:, :, start:stop])
        for column in range(start, stop):
            value = weight[:, :, column]
            rounded = grid.round_(value / step[:, :, column], *grid.limits)
            values[:, :, column] = rounded
            error = (value - rounded * step[:, :, column]) / factor[:, None, column, column]
            errors[:, :, column - start] = error
            weight[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, None, column, column + 1 : stop]
        weight[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return values
