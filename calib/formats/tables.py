"""Weights with a table of numbers for each input channel, and a few that are kept. Importing it does not load torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from calib.formats.number_type import NumberType, Storage, number_type

if TYPE_CHECKING:
    from torch import Tensor

_QUARTERS = range(6, 17)
_SWAPPED = 0.1
"""Share of the columns that give a bit to as many others where the average is whole."""
ENTRY_BITS = 16
"""Bits of a number in a table, and of a weight that is kept."""
KEPT_SHARE = 0.005
"""Share of the weights of a layer that are kept."""


@number_type(*(f"c{quarters / 4:g}" for quarters in _QUARTERS))
class Tables(NumberType):
    """Each input channel, a column of the weight, has a table of 2^bits numbers, and its weights are places in it.

    1. The name says the average: `c2.5` has 2.5 bits a weight, `c1.5` to `c4` in quarters. A column has a whole number
       of bits. The average is hit within one bit of one column, and not exceeded.
    2. Half a percent of the weights are kept in 16 bits, each with its place.
    3. Tables are made with the weight (`calib.rounding.tables`), whatever `--rounding` says.
    4. No ONNX type has tables: files hold the numbers that stand in them, as floats.
    """

    as_floats = True

    @property
    def bits(self) -> float:
        """Bits of one place on average: what the name says."""
        return float(self.name.removeprefix("c"))

    @property
    def widest_bits(self) -> int:
        """Bits of the widest column that there may be."""
        return math.floor(self.bits) + 1

    @property
    def for_activations(self) -> bool:
        """Activations have no columns."""
        return False

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest place in a table."""
        return 0, 2**self.widest_bits - 1

    @property
    def weight_storages(self) -> tuple[Storage, ...]:
        """Files hold floats."""
        return (Storage("FLOAT", 1),)

    def overhead_bits(self, rows: int, columns: int, block: int | None) -> float:
        """Return the bits of tables and of the weights that are kept."""
        del block
        base, (more, less) = math.floor(self.bits), changed_columns(columns, self.bits)
        entries = (columns + more) * 2.0**base - less * 2.0 ** (base - 1)
        return entries * ENTRY_BITS + kept_weights(rows * columns) * (ENTRY_BITS + place_bits(rows * columns))

    def round_(self, steps: Tensor, low: float, high: float) -> Tensor:
        """Columns are rounded to the numbers of their tables."""
        raise NotImplementedError("weights with tables are rounded to the numbers of their tables")

    def stored(self, values: Tensor) -> Tensor:
        """Return uint8."""
        return values.byte()


def changed_columns(columns: int, average: float) -> tuple[int, int]:
    """Return how many of so many columns have a bit more than the whole bits of the average, and how many a bit less.

    The share of the columns that the average's fraction says has more; of a whole average above one, a tenth has more
    and as many have less.
    """
    base = math.floor(average)
    if average == base and base > 1:
        return math.floor(_SWAPPED * columns), math.floor(_SWAPPED * columns)
    return math.floor((average - base) * columns), 0


def kept_weights(weights: int) -> int:
    """Return how many of a layer's weights are kept; an even number, half for each reason."""
    return 2 * round(weights * KEPT_SHARE / 2)


def place_bits(weights: int) -> int:
    """Return the bits that say which weight one is."""
    return max(weights - 1, 1).bit_length()
