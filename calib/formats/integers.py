"""Integers of 1 to 8 bits. Importing it does not load torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.formats.number_type import NUMBER_TYPES, NumberType, Storage, number_type

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_ACTIVATION_BITS = 2
_STORAGES = (Storage("INT2", 25), Storage("INT4", 21), Storage("INT8", 13))
_WIDTHS = (2, 4, 8)


@number_type(*(str(bits) for bits in range(1, 9)))
class Integer(NumberType):
    """Two's complement for weights, and for activations that are signed; other activations are unsigned, with a zero
    point.

    One bit is for weights alone. Its values are -1 and +1: binary weights with a scale, Rastegari et al., arXiv
    1603.05279, section 3.1, who give zero the value +1 too.
    """

    is_integer = True
    blocks = True

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return int(self.name)

    @property
    def for_activations(self) -> bool:
        """Whether activations may be of this type."""
        return self.bits >= _LEAST_ACTIVATION_BITS

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest signed integer."""
        return (-1, 1) if self.bits == 1 else (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)

    @property
    def spacing(self) -> int:
        """One bit has the values -1 and +1."""
        return 2 if self.bits == 1 else 1

    @property
    def unsigned_limits(self) -> tuple[int, int] | None:
        """Smallest and largest unsigned integer."""
        return 0, 2**self.bits - 1

    @property
    def smallest_clip(self) -> float:
        """With one bit the best scale is the mean magnitude (the paper's eq. 6), far below the largest."""
        return 0.02 if self.bits == 1 else 0.3

    @property
    def weight_storages(self) -> tuple[Storage, ...]:
        """The types of ONNX that are wide enough."""
        return tuple(found for found, width in zip(_STORAGES, _WIDTHS, strict=True) if width >= self.bits)

    def activation_storage(self, *, signed: bool) -> Storage:
        """Activations take 8 bits: no runtime computes with fewer."""
        return _STORAGES[-1] if signed else Storage("UINT8", 13)

    def round_(self, steps: Tensor, low: float, high: float) -> Tensor:
        """Round half to even, as ONNX's QuantizeLinear does."""
        if self.bits == 1:
            return steps.copy_(steps >= 0).mul_(2).sub_(1)
        return steps.round_().clamp_(low, high)

    def stored(self, values: Tensor) -> Tensor:
        """Return int8."""
        return values.char()


@number_type("t7", "t8")
class SharedScale(Integer):
    """Integers of 7 and 8 bits for weights whose output channels share one scale: kernels that are given a scale and a
    zero point for each channel take longer, which in small layers is more than the products take.
    """

    blocks = False
    one_scale = True

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return int(self.name.removeprefix("t"))

    @property
    def for_activations(self) -> bool:
        """Activations have one scale anyway."""
        return False


def integer(bits: int) -> NumberType:
    """Return the integers of so many bits."""
    return NUMBER_TYPES[str(bits)]
