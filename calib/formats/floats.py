"""Floating point: of 32 and 16 bits, which layers compute in, and of 8 bits with a scale. Importing it does not load
torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from calib.formats.number_type import NumberType, Storage, number_type

if TYPE_CHECKING:
    from torch import Tensor

_HALF_BITS = 16
_LARGEST_E4M3 = 448.0


@number_type("fp32", "fp16")
class Float(NumberType):
    """Single and half precision of IEEE 754, without a scale."""

    quantized = False
    alone = True

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return int(self.name.removeprefix("fp"))

    @property
    def limits(self) -> tuple[float, float]:
        """The largest finite numbers."""
        largest = 65504.0 if self.bits == _HALF_BITS else sys.float_info.max
        return -largest, largest

    @property
    def weight_storages(self) -> tuple[Storage, ...]:
        """The type itself."""
        return (Storage("FLOAT16" if self.bits == _HALF_BITS else "FLOAT", 1),)

    def round_(self, steps: Tensor, low: float, high: float) -> Tensor:
        """Clamp only."""
        return steps.clamp_(low, high)

    def stored(self, values: Tensor) -> Tensor:
        """Return the values as they are."""
        return values

    def cast(self, weight: Tensor) -> Tensor | None:
        """Return the weight through half precision; single precision changes nothing."""
        return weight.half().float() if self.bits == _HALF_BITS else None


@number_type("fp8")
class Float8(NumberType):
    """FP8 E4M3: 4 bits of exponent and 3 of mantissa, largest magnitude 448, no infinity.

    Micikevicius et al., arXiv 2209.05433, table 1; ONNX's FLOAT8E4M3FN. Values beyond the largest are clamped, as
    TensorRT's Q layer does. Scales are ranges over 448.
    """

    alone = True

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return 8

    @property
    def limits(self) -> tuple[float, float]:
        """The largest numbers."""
        return -_LARGEST_E4M3, _LARGEST_E4M3

    @property
    def smallest_clip(self) -> float:
        """Half of a scale represents the same values, apart from the largest and the smallest."""
        return 0.5

    @property
    def weight_storages(self) -> tuple[Storage, ...]:
        """ONNX has it since opset 19."""
        return (Storage("FLOAT8E4M3FN", 19),)

    def round_(self, steps: Tensor, low: float, high: float) -> Tensor:
        """Round half to even."""
        return steps.copy_(self.stored(steps.clamp_(low, high)))

    def stored(self, values: Tensor) -> Tensor:
        """Return torch.float8_e4m3fn."""
        import torch

        return values.to(torch.float8_e4m3fn)
