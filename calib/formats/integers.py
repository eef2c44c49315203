"""The uniform quantisers: what the integers of an activation and of a weight stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scheme = Literal["affine", "symmetric"]
"""`affine`: unsigned integers with a zero point (CPU kernels); `symmetric`: signed integers, zero point 0
(TensorRT).
"""

SCALE_OF_ZEROS = 1e-8
"""Step of a tensor that was always zero: any would do, and biases are counted in units of input step times weight
step.
"""
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Smaller numbers lose digits in float32, and their inverse is infinite."""


@dataclass(frozen=True)
class ActivationQuantizer:
    """A per-tensor quantiser: real = scale * (integer - zero_point), integers of `bits` bits, unsigned or signed."""

    bits: int
    scale: float
    zero_point: int
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    @property
    def real_limits(self) -> tuple[float, float]:
        """Smallest and largest real value that survives."""
        low, high = self.limits
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    def __call__(self, tensor: Tensor) -> Tensor:
        """Round `tensor` (any shape, float32) to the grid; same shape."""
        low, high = self.limits
        # divided, as ONNX's QuantizeLinear does: a product with the reciprocal (torch.fake_quantize_per_tensor_affine)
        # rounds ties in another way, and values that lie on a grid, as pixels do, are ties by the hundred. A tensor,
        # because CUDA divides by a number that way too
        steps = tensor.div(torch.full((), self.scale, dtype=tensor.dtype, device=tensor.device))
        return steps.round_().clamp_(low - self.zero_point, high - self.zero_point).mul_(self.scale)


def quantizer_from_range(low: float, high: float, bits: int, scheme: Scheme) -> ActivationQuantizer:
    """Return the quantiser that covers `[low, high]`, widened so that it holds zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme == "symmetric":
        scale = _step(max(-low, high), 2 ** (bits - 1) - 1)
        return ActivationQuantizer(bits, _float32(scale), 0, signed=True)
    levels = 2**bits - 1
    scale = _step(high - low, levels)
    return ActivationQuantizer(bits, _float32(scale), min(max(round(-low / scale), 0), levels), signed=False)


def _step(span: float, levels: int) -> float:
    """Relative to the span alone, so that a tensor of tiny values has as many steps as one of large ones."""
    return max(span / levels, _SMALLEST_SCALE) if span > 0 else SCALE_OF_ZEROS


def _float32(value: float) -> float:
    """What the engine stores; the search must see the same number."""
    return float(torch.tensor(value, dtype=torch.float32))


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as integers: real = scale * integer.

    `integers` is int8 in the layout of the float weight `[out, in, ...]`; `scale` is float32 `[out]`, or `[out, in /
    block]` with blocks along the input dimension.
    """

    bits: int
    integers: Tensor
    scale: Tensor
    block: int | None = None

    def dequantize(self) -> Tensor:
        """Return the float32 weight that the integers stand for, in the layout of the float weight."""
        if self.block is None:
            return self.integers.float() * self.scale.reshape(-1, *[1] * (self.integers.dim() - 1))
        return self.integers.float() * self.scale.repeat_interleave(self.block, dim=1)


def weight_limits(bits: int) -> tuple[int, int]:
    """Smallest and largest integer of a signed weight."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
