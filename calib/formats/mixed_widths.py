"""Blocks with zero points whose widths differ inside a layer: any average of bits. Importing it does not load torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from calib.formats.number_type import NumberType, Storage, number_type
from calib.formats.zero_points import zero_point

if TYPE_CHECKING:
    from torch import Tensor

_QUARTERS = range(5, 25)
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
"""What a block may have, in bits."""


@number_type(*(f"m{quarters / 4:g}" for quarters in _QUARTERS))
@dataclass(frozen=True)
class MixedWidths(NumberType):
    """Integers with zero points (`ZeroPoint`); each block of input columns has its own width, all rows the same one.

    1. The name says the average: `m2.5` has 2.5 bits a weight, `m1.25` to `m6` in quarters. The widths of a layer come
       to the largest sum of whole bits that does not exceed it, so that the average is missed by less than a bit of one
       block.
    2. Which block has which width is decided when the weight is rounded, by a width rule (`calib.rounding.widths`).
       `widths` are the bits of each block then, and empty before. They play no part when types are compared.
    3. Scales take 16 bits and zero points as many as a value of their block. Which width a block has takes 3 bits.
    """

    widths: tuple[int, ...] = field(default=(), compare=False)

    blocks = True
    only_blocks = True
    zero_points = True

    @property
    def bits(self) -> float:
        """Bits of one number on average: what the name says."""
        return float(self.name.removeprefix("m"))

    @property
    def widest_bits(self) -> int:
        """Bits of one number of the widest block; of the widest that there may be, before that is known."""
        return max(self.widths or WIDTHS)

    @property
    def for_activations(self) -> bool:
        """Activations have no blocks."""
        return False

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer of the widest block."""
        return 0, max(2**self.widest_bits - 1, 2)

    @property
    def scale_bits(self) -> int:
        """Bits of a stored scale."""
        return zero_point(WIDTHS[0]).scale_bits

    @property
    def zero_point_bits(self) -> float:
        """Bits of a stored zero point on average."""
        return self.bits

    @property
    def weight_storages(self) -> tuple[Storage, ...]:
        """Those of the widest block: no ONNX type has several widths."""
        return zero_point(self.widest_bits).weight_storages

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Bits of each block, once they are decided."""
        return self.widths

    def with_widths(self, choose: Callable[[], tuple[int, ...]]) -> NumberType:
        """Return the type with the bits of each block."""
        return replace(self, widths=choose())

    def of_block(self, number: int) -> NumberType:
        """Return the integers of one block."""
        if not self.widths:
            raise ValueError(f"the widths of blocks of type {self.name} are decided by a width rule first")
        return zero_point(self.widths[number])

    def held(self, scale: Tensor) -> Tensor:
        """Round scales as those of any width."""
        return zero_point(WIDTHS[0]).held(scale)

    def round_(self, steps: Tensor, low: float, high: float) -> Tensor:
        """Blocks are rounded by the type of each (`of_block`)."""
        raise NotImplementedError("numbers of mixed widths are rounded block by block")

    def stored(self, values: Tensor) -> Tensor:
        """Return uint8."""
        return values.byte()


def bits_of_blocks(average: float, blocks: int) -> int:
    """Return what the widths of so many blocks come to."""
    return int(average * blocks)
