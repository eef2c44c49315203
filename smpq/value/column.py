"""One number of each sample, of many batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Column:
    """Numbers of many batches in one piece of memory, which grows by doubling.

    Small pieces that outlive their batch would each hold the memory of the batch in two, so that the next batch does
    not fit into it: memory would grow by a batch with each.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.sizes: dict[int, int] = {}
        """Samples of each batch, by its number."""
        self._starts: dict[int, int] = {}
        self._filled, self._all = 0, torch.empty(1024, dtype=dtype)

    def add(self, number: int, values: Tensor) -> None:
        """Keep `[n]` values of a batch."""
        end = self._filled + len(values)
        if end > len(self._all):
            wider = self._all.new_empty(2 * end)
            wider[: self._filled] = self._all[: self._filled]
            self._all = wider
        self._all[self._filled : end] = values
        self._starts[number], self.sizes[number], self._filled = self._filled, len(values), end

    def of(self, numbers: Sequence[int]) -> Tensor:
        """Return `[n]`, the values of some batches."""
        parts = [self._all[self._starts[number] :][: self.sizes[number]] for number in numbers]
        return torch.cat(parts)

    def shared(self, other: Column) -> list[int]:
        """Return the numbers of the batches of both."""
        return sorted(self.sizes.keys() & other.sizes.keys())
