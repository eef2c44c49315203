"""How sure a median of rounds is, and a ratio of two engines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deploy.runner.quiet import widened

_RESAMPLES = 2000
_CONFIDENCE = 0.95
_NORMAL_95 = 1.96
BETWEEN_SESSIONS = 0.005
"""The standard deviation of the ratio of two engines from session to session, as a share of it: they lie in memory in
another way each time, which rounds of the same sessions do not show. Of an engine to itself it was 0.993 to 1.005.
"""


def bootstrap_median(values: Sequence[float] | np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the median."""
    array = np.asarray(values)
    picks = generator.integers(0, len(array), size=(_RESAMPLES, len(array)))
    medians = np.median(array[picks], axis=1)
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)


def between_sessions(ratio: float, interval: tuple[float, float], sessions: int = 1) -> tuple[float, float]:
    """Return the interval of a ratio that holds for other sessions of the same engines too, from that of the rounds of
    so many. Ours.
    """
    own = _NORMAL_95 * BETWEEN_SESSIONS * ratio / math.sqrt(sessions)
    low, high = interval
    return max(ratio - math.hypot(ratio - low, own), 0.0), ratio + math.hypot(high - ratio, own)


def interval_of_ratio(
    ratios: np.ndarray, slowdown: float, generator: np.random.Generator, sessions: int = 1
) -> tuple[float, float]:
    """Return the 95 % interval of the median of the ratios within rounds, `[n]`, of two engines in some sessions: for
    other sessions too, and beside other work that slows the baseline down by `slowdown`.
    """
    within = bootstrap_median(ratios, generator)
    return widened(between_sessions(float(np.median(ratios)), within, sessions), slowdown)
