"""Rank correlation against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from smpq.scoring.ranks import spearman


def test_as_scipy_also_with_ties():
    generator = np.random.default_rng(0)
    for count in range(3, 40):
        one, two = generator.integers(0, 6, count).tolist(), generator.integers(0, 3, count).tolist()
        if len(set(one)) > 1 and len(set(two)) > 1:
            assert spearman(one, two) == pytest.approx(spearmanr(one, two).statistic, abs=1e-12)


def test_ends_and_what_says_nothing():
    assert spearman([1, 2, 3], [-5, 0, 1e9]) == 1
    assert spearman([1, 2, 3], [3, 2, 1]) == -1
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([], []) is None
