"""How far two lists of values order the same things alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FEWEST = 3
"""Two things are always in the same order or in the opposite one."""


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, -1 to 1; None where it says nothing: fewer than three values, or all the
    same.

    Values that are the same share the mean of their ranks, and the result is Pearson's correlation of the ranks. The
    formula with squared differences of ranks holds without such ties alone.
    """
    if len(first) < FEWEST:
        return None
    one, two = _ranks(first), _ranks(second)
    if not one.any() or not two.any():
        return None
    return float(np.clip(one @ two / np.sqrt((one @ one) * (two @ two)), -1, 1))


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the rank of each value, from the mean of all ranks; exactly 0 where all values are the same."""
    _, places, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[places]
    return ranks - (len(values) + 1) / 2
