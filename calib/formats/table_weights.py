"""A weight whose columns have tables of numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from calib.formats.quantizers import QuantizedWeight
from calib.formats.tables import ENTRY_BITS, place_bits


@dataclass(frozen=True)
class TableWeight(QuantizedWeight):
    """A weight in `calib.formats.tables.Tables`: real = table of the column at the value, or what is kept.

    `values` are uint8 places in the layout of the float weight `[out, in, ...]`; a column is an element of what is
    behind `out`. `scale` holds the tables, `[columns, 2^widest]`, float32 numbers that 16 bits hold. `widths` are the
    bits of the columns. `kept` are weights by their places in the flat weight `[kept]`, and `kept_as` what they are.
    """

    widths: tuple[int, ...] = ()
    kept: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    kept_as: Tensor = field(default_factory=lambda: torch.zeros(0))

    def dequantize(self) -> Tensor:
        """Return the float32 weight that tables and kept weights stand for, in the layout of the float weight."""
        places = self.values.reshape(len(self.values), -1).long()
        found = torch.take_along_dim(self.scale.T, places, dim=0).flatten()
        found[self.kept] = self.kept_as
        return found.reshape(self.values.shape)

    def stored_bits(self) -> float:
        """Return what places, tables and kept weights take together, in bits."""
        tables = sum(2**width for width in self.widths) * ENTRY_BITS
        kept = len(self.kept) * (ENTRY_BITS + place_bits(self.values.numel()))
        return float(len(self.values) * sum(self.widths) + tables + kept)

    def content(self) -> bytes:
        """Return everything that the weight consists of."""
        kept = self.kept.cpu().numpy().tobytes() + self.kept_as.cpu().numpy().tobytes()
        return super().content() + kept
