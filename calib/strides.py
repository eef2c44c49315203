"""Steps of evenly spaced samples."""

from __future__ import annotations

import math


def stride_over(wanted: int, period: int) -> int:
    """Return the least number from `wanted` on that has no factor in common with `period`: steps of so many elements
    come to every place of a period. Others would stay on some channels, or some columns.
    """
    stride = max(wanted, 1)
    while math.gcd(stride, period) > 1:
        stride += 1
    return stride
