"""Round every weight to the nearest grid point."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.rounding.base import Moments, rounding
from calib.rounding.grids import search_grid


@rounding("nearest")
def round_nearest(
    weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor
) -> QuantizedWeight:
    """Round to nearest with the clipping range of least plain squared error (the inputs play no part)."""
    found = search_grid(weight, plain_moments(moments), grid, block, scale_floor)
    return found.weight(found.nearest(weight))


def plain_moments(moments: Moments) -> Moments:
    """Return those of independent inputs, for as many groups: every error counts alike."""
    groups, length, _ = moments.matrix.shape
    return Moments(torch.eye(length, device=moments.matrix.device).expand(groups, -1, -1))
