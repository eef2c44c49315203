"""Round every weight to the nearest grid point."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.rounding.base import Moments, rounding, search_scales


@rounding("nearest")
def round_nearest(
    weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor
) -> QuantizedWeight:
    """Round to nearest with the clipping range of least plain squared error (the inputs play no part)."""
    ones = Moments(torch.eye(weight.shape[1], device=weight.device).expand(moments.matrix.shape[0], -1, -1))
    scale = search_scales(weight, ones, grid, block, scale_floor)
    step = scale[:, None] if block is None else scale.repeat_interleave(block, dim=1)
    return QuantizedWeight(grid, grid.stored(grid.round_(weight / step, *grid.limits)), scale, block)
