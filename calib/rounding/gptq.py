"""GPTQ: round column by column and let the columns that are left absorb each error."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.quantizer import QuantizedWeight, weight_limits
from calib.rounding.base import Moments, rounding, search_scales

_DAMPING = 0.01
_COLUMNS_AT_ONCE = 128


@rounding("gptq")
def round_gptq(weight: Tensor, moments: Moments, bits: int, block: int | None, scale_floor: Tensor) -> QuantizedWeight:
    """Minimise the error of the layer's output, second moments H of the layer's *float* inputs given.

    Frantar et al., arXiv 2210.17323, algorithm 1, with: 1 % diagonal damping; columns in order of falling diag(H); step sizes
    chosen beforehand by a clip search weighted with diag(H) (per row, or per row and block, of the original column order); the
    groups of a grouped convolution solved side by side.
    """
    rows, length = weight.shape
    groups = moments.matrix.shape[0]
    scale = search_scales(weight, moments, bits, block, scale_floor)
    step = scale[:, None].expand(rows, length) if block is None else scale.repeat_interleave(block, dim=1)
    order = torch.argsort(moments.diagonal, dim=1, descending=True, stable=True)
    by_row = order.repeat_interleave(rows // groups, dim=0)
    factor = _inverse_factor(_reorder(moments.matrix, order))
    integers = _round_columns(
        weight.gather(1, by_row).reshape(groups, -1, length),
        step.gather(1, by_row).reshape(groups, -1, length),
        factor,
        weight_limits(bits),
    ).reshape(rows, length)
    restored = torch.empty_like(integers).scatter_(1, by_row, integers)
    return QuantizedWeight(bits, restored.to(torch.int8), scale, block)


def _reorder(matrix: Tensor, order: Tensor) -> Tensor:
    length = order.shape[1]
    rows = matrix.gather(1, order[:, :, None].expand(-1, -1, length))
    return rows.gather(2, order[:, None, :].expand(-1, length, -1))


def _inverse_factor(matrix: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped inverse, `[groups, k, k]`."""
    diagonal = torch.diagonal(matrix, dim1=1, dim2=2)
    damping = _DAMPING * diagonal.mean(dim=1, keepdim=True)
    damping = torch.where(damping > 0, damping, torch.ones_like(damping))
    damped = matrix + torch.diag_embed(damping.expand_as(diagonal))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _round_columns(weight: Tensor, step: Tensor, factor: Tensor, limits: tuple[int, int]) -> Tensor:
    """Round `[groups, rows, k]`; a block of columns at a time, so that most of the updates are matrix products."""
    low, high = limits
    weight = weight.clone()
    integers = torch.empty_like(weight)
    length = weight.shape[2]
    for start in range(0, length, _COLUMNS_AT_ONCE):
        stop = min(start + _COLUMNS_AT_ONCE, length)
        errors = torch.empty_like(weight[:, :, start:stop])
        for column in range(start, stop):
            value = weight[:, :, column]
            rounded = torch.clamp(torch.round(value / step[:, :, column]), low, high)
            integers[:, :, column] = rounded
            error = (value - rounded * step[:, :, column]) / factor[:, None, column, column]
            errors[:, :, column - start] = error
            weight[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, None, column, column + 1 : stop]
        weight[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return integers
