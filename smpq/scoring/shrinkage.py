"""Steady the scores of few walks with what every move does alone: an empirical Bayes estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_FLOOR = 0.02
_POOLED_DEGREES = 4.0
_ROUNDS = 10


def shrink(alone: Mapping[str, float], marginals: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Shrink mean marginals towards what the one-at-a-time scores predict; all keys are moves of one format, two walks
    or more.

    1. In units of its one-at-a-time score, a move's marginal in context is a ratio. The ratios of all groups are about
       the same number: errors of other layers amplify or hide an error by a common factor. A score near 0 counts as 2 %
       of the largest.
    2. The variance of a ratio is pooled with that of the other groups (four degrees of freedom), because few walks know
       it badly.
    3. The mean ratio is the prior's, its spread beyond the sampling error the prior's variance; each ratio moves
       towards the mean by the share of its variance that is sampling error (Efron and Morris 1975).

    A cheap score thus serves as control variate where walks are few, and loses all influence as they become many. Ours.
    """
    keys = list(alone)
    samples = np.array([marginals[key] for key in keys])
    walks = samples.shape[1]
    scores = np.array([alone[key] for key in keys])
    scale = (
        np.maximum(np.abs(scores), _FLOOR * float(np.abs(scores).max(initial=0.0)))
        if np.any(scores)
        else np.ones_like(scores)
    )
    means, own = (samples / scale[:, None]).mean(axis=1), (samples / scale[:, None]).var(axis=1, ddof=1)
    errors = ((walks - 1) * own + _POOLED_DEGREES * np.median(own)) / (walks - 1 + _POOLED_DEGREES) / walks
    expected, between = _prior(scores / scale, means, errors)
    share = between / np.maximum(between + errors, 1e-300)
    values = scale * (expected + share * (means - expected))
    return dict(zip(keys, values.tolist(), strict=True))


def _prior(
    signs: npt.NDArray[np.float64], means: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], float]:
    """Return what is expected of each mean, and the variance of the truth around that; all in units of the scale.

    The factor by weighted least squares and the variance by moments, in turn, because the weights depend on it
    (DerSimonian and Laird 1986).
    """
    between = float(np.var(means))
    expected = means
    for _ in range(_ROUNDS):
        weights = 1.0 / np.maximum(between + errors, 1e-300)
        expected = signs * float((weights * signs * means).sum() / max((weights * signs**2).sum(), 1e-300))
        between = max(float((weights * ((means - expected) ** 2 - errors)).sum() / weights.sum()), 0.0)
    return expected, between
