"""Round every weight to the nearest grid point."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.integers import QuantizedWeight, weight_limits
from calib.rounding.base import Moments, rounding, search_scales


@rounding("nearest")
def round_nearest(
    weight: Tensor, moments: Moments, bits: int, block: int | None, scale_floor: Tensor
) -> QuantizedWeight:
    """Round to nearest with the clipping range of least plain squared error (the inputs play no part)."""
    ones = Moments(torch.eye(weight.shape[1], device=weight.device).expand(moments.matrix.shape[0], -1, -1))
    scale = search_scales(weight, ones, bits, block, scale_floor)
    low, high = weight_limits(bits)
    step = scale[:, None] if block is None else scale.repeat_interleave(block, dim=1)
    integers = torch.clamp(torch.round(weight / step), low, high).to(torch.int8)
    return QuantizedWeight(bits, integers, scale, block)
