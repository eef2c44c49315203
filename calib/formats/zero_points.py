"""Integers of 1 to 8 bits whose blocks each have a scale and a zero point, for weights.
Importing it does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.formats.number_type import NUMBER_TYPES, NumberType, Storage, number_type

if TYPE_CHECKING:
    from torch import Tensor

_STORAGES = (Storage("UINT2", 25), Storage("UINT4", 21), Storage("UINT8", 13))
_WIDTHS = (2, 4, 8)
_SCALE_BITS = 16


@number_type(*(f"z{bits}" for bits in range(1, 9)))
class ZeroPoint(NumberType):
    """Unsigned integers: real = scale * (value - zero point), scale and zero point of each block of inputs.

    1. The grid covers the smallest to the largest weight of a block, zero always among them, so that zero is exact
       (Jacob et al., arXiv 1712.05877, section 2.1). Symmetric integers cover both sides to the larger magnitude.
    2. Scales are kept in 16 bits (bfloat16, which has the range of float32), zero points in as many bits as values.
    3. One bit has the values 0 and 2 around a fixed zero point of 1: minus and plus the scale, as `w1` has. No zero
       point is stored.
    """

    blocks = True
    only_blocks = True
    zero_points = True

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return int(self.name.removeprefix("z"))

    @property
    def for_activations(self) -> bool:
        """Activations have a zero point without this."""
        return False

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest unsigned integer."""
        return (0, 2) if self.bits == 1 else (0, 2**self.bits - 1)

    @property
    def spacing(self) -> int:
        """One bit has the values 0 and 2."""
        return 2 if self.bits == 1 else 1

    @property
    def smallest_clip(self) -> float:
        """As for integers without a zero point."""
        return 0.02 if self.bits == 1 else 0.3

    @property
    def scale_bits(self) -> int:
        """Bits of a stored scale."""
        return _SCALE_BITS

    @property
    def zero_point_bits(self) -> int:
        """Bits of a stored zero point."""
        return 0 if self.bits == 1 else self.bits

    @property
    def zero_point_limits(self) -> tuple[int, int]:
        """All values; of one bit 1 alone."""
        return (1, 1) if self.bits == 1 else self.limits

    @property
    def weight_storages(self) -> tuple[Storage, ...]:
        """The unsigned types of ONNX that are wide enough; the values of one bit reach 2."""
        return tuple(found for found, width in zip(_STORAGES, _WIDTHS, strict=True) if width >= self.bits)

    def held(self, scale: Tensor) -> Tensor:
        """Round scales to bfloat16."""
        return scale.bfloat16().float()

    def round_(self, steps: Tensor, low: float, high: float) -> Tensor:
        """Round half to even, as ONNX's QuantizeLinear does; of one bit, to 0 below 1 and to 2 from 1 on."""
        if self.bits == 1:
            return steps.copy_(steps >= 1).mul_(2)
        return steps.round_().clamp_(low, high)

    def stored(self, values: Tensor) -> Tensor:
        """Return uint8."""
        return values.byte()


def zero_point(bits: int) -> NumberType:
    """Return the integers of so many bits with a zero point."""
    return NUMBER_TYPES[f"z{bits}"]
