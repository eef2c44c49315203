"""Quantised tensors: what the numbers of an activation and of a weight stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calib.formats.number_type import NumberType, Storage

Scheme = Literal["affine", "symmetric"]
"""`affine`: unsigned integers with a zero point (CPU kernels); `symmetric`: signed integers, zero point 0
(TensorRT). Types without unsigned integers have no zero point under either.
"""

SCALE_OF_ZEROS = 1e-8
"""Step of a tensor that was always zero: any would do, and biases are counted in units of input step times weight
step.
"""
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Smaller numbers lose digits in float32, and their inverse is infinite."""


@dataclass(frozen=True)
class ActivationQuantizer:
    """A per-tensor quantiser: real = scale * (value - zero_point), values of `type`; integers are unsigned or
    signed.
    """

    type: NumberType
    scale: float
    zero_point: int = 0
    signed: bool = True

    @property
    def bits(self) -> int:
        """Bits of one value."""
        return int(self.type.bits)

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value."""
        return self.type.limits if self.signed or self.type.unsigned_limits is None else self.type.unsigned_limits

    @property
    def real_limits(self) -> tuple[float, float]:
        """Smallest and largest real value that survives."""
        low, high = self.limits
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    @property
    def storage(self) -> Storage:
        """What holds the values in ONNX."""
        return self.type.activation_storage(signed=self.signed)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Round `tensor` (any shape, float32) to the grid; same shape."""
        low, high = self.limits
        # divided, as ONNX's QuantizeLinear does: a product with the reciprocal (torch.fake_quantize_per_tensor_affine)
        # rounds ties in another way, and values that lie on a grid, as pixels do, are ties by the hundred. A tensor,
        # because CUDA divides by a number that way too
        steps = tensor.div(torch.full((), self.scale, dtype=tensor.dtype, device=tensor.device))
        return self.type.round_(steps, low - self.zero_point, high - self.zero_point).mul_(self.scale)


def quantizer_from_range(low: float, high: float, type_: NumberType, scheme: Scheme) -> ActivationQuantizer:
    """Return the quantiser that covers `[low, high]`, widened so that it holds zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if scheme == "symmetric" or type_.unsigned_limits is None:
        scale = _step(max(-low, high), type_.limits[1])
        return ActivationQuantizer(type_, _float32(scale), 0, signed=True)
    levels = int(type_.unsigned_limits[1])
    scale = _step(high - low, levels)
    return ActivationQuantizer(type_, _float32(scale), min(max(round(-low / scale), 0), levels), signed=False)


def _step(span: float, levels: float) -> float:
    """Relative to the span alone, so that a tensor of tiny values has as many steps as one of large ones."""
    return max(span / levels, _SMALLEST_SCALE) if span > 0 else SCALE_OF_ZEROS


def _float32(value: float) -> float:
    """What the engine stores; the search must see the same number."""
    return float(torch.tensor(value, dtype=torch.float32))


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in a number type: real = scale * value, or scale * (value - zero point).

    `values` are int8 for integers, uint8 for those with zero points, float8_e4m3fn for FP8 (`NumberType.stored`), in
    the layout of the float weight `[out, in, ...]`. `scale` is float32 `[out]`, also where all channels share one, or
    `[out, in / block]` with blocks along the input dimension. `zero_point` is a whole float32 number for each scale,
    None for types that have none.
    """

    type: NumberType
    values: Tensor
    scale: Tensor
    block: int | None = None
    zero_point: Tensor | None = None

    @property
    def bits(self) -> int:
        """Bits of one value; of the widest where blocks have several widths."""
        return self.type.widest_bits

    def stored_bits(self) -> float:
        """Return what values, scales and zero points take together, in bits.

        Which width a block has is not counted: 3 bits for a block of all rows.
        """
        if self.block is None:
            rows, columns = len(self.values), self.values.numel() // len(self.values)
            return self.values.numel() * self.type.bits + self.type.overhead_bits(rows, columns, None)
        total = 0.0
        for number in range(self.scale.shape[1]):
            own = self.type.of_block(number)
            total += len(self.values) * (self.block * own.bits + own.scale_bits + own.zero_point_bits)
        return total

    def dequantize(self) -> Tensor:
        """Return the float32 weight that the values stand for, in the layout of the float weight."""
        values = self.values.float()
        if self.zero_point is not None:
            values = values - self._by_weight(self.zero_point)
        return values * self._by_weight(self.scale)

    def _by_weight(self, of_scales: Tensor) -> Tensor:
        """Return numbers that there are for each scale, in a shape that multiplies the weight."""
        if self.block is None:
            return of_scales.reshape(-1, *[1] * (self.values.dim() - 1))
        return of_scales.repeat_interleave(self.block, dim=1)

    def content(self) -> bytes:
        """Return everything that the weight consists of, besides its type."""
        zero = b"" if self.zero_point is None else self.zero_point.cpu().numpy().tobytes()
        return self.value_bytes() + self.scale.cpu().numpy().tobytes() + zero

    def value_bytes(self) -> bytes:
        """Return the values as they lie in memory."""
        return self.values.cpu().contiguous().view(torch.uint8).numpy().tobytes()

    def scale_array(self) -> npt.NDArray[np.float32]:
        """Return the scales, a scalar where all channels share one."""
        scale = self.scale.detach().cpu().float()
        if not self.type.one_scale:
            return np.asarray(scale.numpy())
        if not bool((scale == scale[0]).all()):
            raise ValueError(f"weights of type {self.type.name} have one scale, and the channels have several")
        return np.asarray(scale[0].numpy())

    def zero_point_array(self) -> npt.NDArray[np.float32]:
        """Return the zero points in the shape of `scale_array`, zeros where the type has none."""
        if self.zero_point is None:
            return np.zeros_like(self.scale_array())
        return np.asarray(self.zero_point.detach().cpu().float().numpy())

    def value_array(self) -> npt.NDArray[np.float32]:
        """Return the values as float32, which holds each exactly."""
        return np.asarray(self.values.detach().cpu().float().numpy())
