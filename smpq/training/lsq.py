"""Quantisers that are trained: rounding in the forward pass, a gradient for the tensor and for the step size in the
backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.formats.format import Format
from calib.formats.integers import integer
from calib.formats.number_type import NumberType
from calib.formats.quantizers import ActivationQuantizer, QuantizedWeight

_SMALLEST_SHARE = 1e-3
"""Lower limit of a step size, as a share of its start: step sizes must stay positive."""


def check_learned(formats: Iterable[Format]) -> None:
    """Raise UserError when a format has numbers whose steps are not learned: those that are no integers, and weights
    with one step, which a BatchNorm that is folded behind the training would give one for each channel.
    """
    for chosen in formats:
        types = [found for found in (chosen.weight, chosen.activation) if found is not None and found.quantized]
        if not all(found.is_integer for found in types):
            raise UserError(
                f"{chosen} cannot be trained: fine-tuning and supernets learn the steps of integers; leave {chosen} "
                "out of --formats, or do not fine-tune"
            )
        if any(found.one_scale for found in types):
            raise UserError(
                f"{chosen} cannot be trained: fine-tuning and supernets learn a step for each output channel; use "
                f"{Format(integer(int(chosen.weight_bits)), chosen.activation)}, or do not fine-tune"
            )


class TrainedQuantizer(nn.Module):
    """A quantiser that a TrainableGraph puts on a weight or on an activation: `forward` returns the tensor rounded,
    same shape.

    Its parameters are trained in a group of their own (`Groups.quantizers`).
    """

    def project(self) -> None:
        """Bring the parameters back to where they mean something; called after every step of the optimiser."""


class LearnedWeight(TrainedQuantizer):
    """A weight `[out, in, ...]` on signed integers times a step, one for each output channel or each block of inputs,
    that is learned.

    Esser et al., arXiv 1902.08153: gradient of the step by eq. 3, scaled by 1 / sqrt(n * largest integer) (section
    2.2), n weights a step.
    """

    _smallest: Tensor

    def __init__(self, step: Tensor, grid: NumberType, block: int | None = None) -> None:
        """`step` is positive, `[out]`, or `[out, in / block]`."""
        super().__init__()
        self.grid = grid
        self.block = block
        self.step = nn.Parameter(step.detach().clone())
        self.register_buffer("_smallest", step.detach() * _SMALLEST_SHARE, persistent=False)

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest integer."""
        return self.grid.limits

    def spread(self, weight: Tensor) -> Tensor:
        """Return the steps in a shape that divides the weight."""
        return self._spread(weight, self.step)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the integers stand for."""
        return self.rounded(weight, self.step, self.grid)

    def rounded(self, weight: Tensor, step: Tensor, grid: NumberType) -> Tensor:
        """Return the weight on another grid with other steps, `[out]` or `[out, in / block]`."""
        n = weight.numel() / step.numel()
        scale = 1.0 / math.sqrt(n * grid.limits[1])
        rounded: Tensor = _RoundWeight.apply(weight, self._spread(weight, step), grid, scale)
        return rounded

    def _spread(self, weight: Tensor, step: Tensor) -> Tensor:
        if self.block is not None:
            return step.repeat_interleave(self.block, dim=1)
        return step.reshape(-1, *[1] * (weight.dim() - 1))

    def quantized(self, weight: Tensor, factor: Tensor) -> QuantizedWeight:
        """Return the integers, and the steps times `factor` `[out]`: what is left when the factor is folded into the
        weight.
        """
        with torch.no_grad():
            integers = self.grid.round_(weight / self.spread(weight), *self.limits)
            scale = self.step.double() * factor.double().reshape(-1, *[1] * (self.step.dim() - 1))
        return QuantizedWeight(
            self.grid, self.grid.stored(integers).contiguous(), scale.float().contiguous(), self.block
        )

    def project(self) -> None:
        """Keep the steps positive."""
        with torch.no_grad():
            self.step.copy_(torch.maximum(self.step, self._smallest))


class CastWeight(TrainedQuantizer):
    """A weight stored in a float type without a scale, such as half precision; the gradient passes as it is."""

    def __init__(self, stored_as: NumberType) -> None:
        super().__init__()
        self._type = stored_as

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as the type represents it."""
        stored = self._type.cast(weight)
        return weight if stored is None else weight + (stored - weight).detach()


class FixedActivation(TrainedQuantizer):
    """An activation on the grid that calibration found; what lies outside of its range has no gradient."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self._quantizer = quantizer

    def forward(self, tensor: Tensor) -> Tensor:
        """Round to the grid."""
        rounded: Tensor = _RoundFixed.apply(tensor, self._quantizer)
        return rounded

    def quantizer(self) -> ActivationQuantizer:
        """Return the quantiser."""
        return self._quantizer


class LearnedActivation(TrainedQuantizer):
    """An activation on a grid whose step is learned and whose zero point stays. Esser et al. as in LearnedWeight."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self._start = quantizer
        self.step = nn.Parameter(torch.tensor(quantizer.scale, dtype=torch.float32))

    def forward(self, tensor: Tensor) -> Tensor:
        """Round to the grid."""
        rounded: Tensor = _RoundLearned.apply(tensor, self.step, self.quantizer())
        return rounded

    def quantizer(self) -> ActivationQuantizer:
        """Return the quantiser with the step as it is now."""
        return ActivationQuantizer(
            self._start.type, float(self.step.detach()), self._start.zero_point, self._start.signed
        )

    def project(self) -> None:
        """Keep the step positive."""
        with torch.no_grad():
            self.step.clamp_(min=self._start.scale * _SMALLEST_SHARE)


class _RoundWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, grid: NumberType, step_gradient_scale: float) -> Tensor:
        scaled = weight / step
        integers = grid.round_(scaled.clone(), *grid.limits)
        ctx.save_for_backward(scaled, integers)
        ctx.limits = grid.limits
        ctx.step_shape = step.shape
        ctx.step_gradient_scale = step_gradient_scale
        return integers * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        scaled, integers = ctx.saved_tensors
        low, high = ctx.limits
        (gradient,) = gradients
        inside = (scaled >= low) & (scaled <= high)
        by_step = gradient * torch.where(inside, integers - scaled, integers) * ctx.step_gradient_scale
        return gradient * inside, by_step.sum_to_size(ctx.step_shape), None, None


class _RoundFixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, quantizer: ActivationQuantizer) -> Tensor:
        ctx.save_for_backward(tensor)
        ctx.quantizer = quantizer
        return quantizer(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (tensor,) = ctx.saved_tensors
        return _inside(gradients[0], tensor, ctx.quantizer), None


class _RoundLearned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, step: Tensor, quantizer: ActivationQuantizer) -> Tensor:
        rounded = quantizer(tensor)
        ctx.save_for_backward(tensor, rounded)
        ctx.quantizer = quantizer
        ctx.shape = step.shape
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        tensor, rounded = ctx.saved_tensors
        quantizer: ActivationQuantizer = ctx.quantizer
        inside = _inside(gradients[0], tensor, quantizer)
        # inside: g * (rounded - x) / step; outside: g * rounded / step
        total = ((gradients[0] * rounded).sum() - (inside * tensor).sum()) / quantizer.scale
        low, high = quantizer.limits
        largest = max(high - quantizer.zero_point, quantizer.zero_point - low)
        return inside, (total / math.sqrt(tensor.numel() * largest)).reshape(ctx.shape), None


def _inside(gradient: Tensor, tensor: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """Return the gradient where the tensor rounds to a value of the grid without being clipped, zero elsewhere."""
    low, high = quantizer.real_limits
    half = quantizer.scale / 2
    # one pass; a mask takes four
    passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, tensor, low - half, high + half)
    return passed
