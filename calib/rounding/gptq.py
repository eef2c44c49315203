"""GPTQ: round column by column and let the columns that are left absorb each error."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.rounding.base import Moments, exponents, rounding, scaled_by_powers, search_scales

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
    of what can be gained.
    """
    rows, length = weight.shape
    groups = moments.matrix.shape[0]
    found = search_scales(weight, moments, grid, block, scale_floor)
    order, factor = moments.order, moments.inverse_factor
    by_row = order.repeat_interleave(rows // groups, dim=0)
    ordered = weight.gather(1, by_row).reshape(groups, -1, length)
    best_error = torch.full((rows,), torch.inf, device=weight.device)
    best_values, best_scale = torch.zeros_like(weight), found.clone()
    floor = scale_floor if block is None else scale_floor[:, None]
    unit = -exponents(weight.abs().amax(dim=1, keepdim=True))  # errors of tiny weights would have no squares
    for factor_of_step in _STEPS if grid.bits < _NO_SEARCH_FROM else (1.0,):
        scale = torch.maximum(found * factor_of_step, floor)
        step = scale[:, None].expand(rows, length) if block is None else scale.repeat_interleave(block, dim=1)
        steps = step.gather(1, by_row).reshape(groups, -1, length)
        rounded = _round_columns(ordered, steps, factor, grid).reshape(rows, length)
        values = torch.empty_like(rounded).scatter_(1, by_row, rounded)
        difference = scaled_by_powers(values * step - weight, unit).reshape(groups, -1, length)
        error = ((difference @ moments.scaled) * difference).sum(dim=2).reshape(rows)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_values = torch.where(better[:, None], values, best_values)
        best_scale = torch.where(better if block is None else better[:, None], scale, best_scale)
    return QuantizedWeight(grid, grid.stored(best_values), best_scale, block)


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
