"""A weight whose gradient draws it away from the borders between the values of its grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from smpq.training.bits.chance import TwoWidthWeight

_NOISE = 1 / 3
"""Of the distance of two values, that of Relaxed Quantization at its start."""


class ClusteredWeight(TwoWidthWeight):
    """A LearnedWeight that is the most probable value of its grid, with the gradient of the expected one.

    Lee et al., CPQ (arXiv 2109.02100), after Louizos et al., Relaxed Quantization (arXiv 1810.01875): a weight with
    logistic noise falls on value i of the grid with the probability r_i that the noise takes it there, and forward it
    is the value with the largest. The derivative of the expected value is small in the middle of a bin and large at its
    borders, the more so the smaller the `noise`, a share of the distance of two values. So weights come to rest in the
    middles. With a third of the distance it is nearly the same everywhere, as that of a LearnedWeight.

    While `kept` is set, a tensor `[]` in 0..1, that share of the values that the next width down, `below`, does not
    have with this step is there: 0 drops them, 1 keeps them. `kept` gets the gradient of the loss by the difference.
    """

    noise: float = _NOISE

    def __init__(self, step: Tensor, grid: NumberType, block: int | None = None) -> None:
        super().__init__(step, grid, block)
        self.kept: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the most probable values."""
        high = self.rounded(weight, self.step, self.grid)
        if self.kept is None:
            return high
        return self.kept * high + (1 - self.kept) * self.rounded(weight, self.step, self.below)

    def rounded(self, weight: Tensor, step: Tensor, grid: NumberType) -> Tensor:
        """Return the weight on another grid with other steps, `[out]` or `[out, in / block]`."""
        scale = 1.0 / math.sqrt(weight.numel() / step.numel() * grid.limits[1])
        found: Tensor = _RoundClustered.apply(weight, self._spread(weight, step), grid, scale, self.noise)
        return found


class _RoundClustered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, step: Tensor, grid: NumberType, step_gradient_scale: float, noise: float
    ) -> Tensor:
        scaled = weight / step
        values = grid.round_(scaled.clone(), *grid.limits)
        ctx.save_for_backward(scaled, values)
        ctx.limits, ctx.spacing, ctx.noise = grid.limits, float(grid.spacing), noise
        ctx.step_shape, ctx.step_gradient_scale = step.shape, step_gradient_scale
        return values * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        scaled, values = ctx.saved_tensors
        (low, high), spacing, noise = ctx.limits, ctx.spacing, ctx.noise
        within = (scaled - values) / spacing
        # the two nearest borders; the ends of the grid have none outside
        upper, lower = torch.sigmoid((within - 0.5) / noise), torch.sigmoid((within + 0.5) / noise)
        slope = (values < high) * upper * (1 - upper) + (values > low) * lower * (1 - lower)
        slope = slope / noise
        by_step = gradients[0] * (values - scaled * slope) * ctx.step_gradient_scale
        return gradients[0] * slope, by_step.sum_to_size(ctx.step_shape), None, None, None
