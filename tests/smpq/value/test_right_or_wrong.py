"""Metrics of samples that are right or wrong: what few samples show, in shares and in percent."""

from __future__ import annotations

import math

import pytest
import torch

from smpq.files import Interval
from smpq.value.collected import MeanCollected


def right_or_wrong(right, count, scale=1.0):
    found = MeanCollected(lambda output, _: output)
    found.add(0, scale * (torch.arange(count) < right).double())
    return found


def test_samples_that_are_all_right_show_no_certainty():
    all_right = right_or_wrong(512, 512)
    low, high = all_right.figure().interval.low, all_right.figure().interval.high
    assert (low, high) == (pytest.approx(512 / (512 + 1.96**2)), 1.0), "Wilson's interval"
    few = right_or_wrong(300, 512).figure()
    assert few.interval.low == pytest.approx(few.value - 1.96 * few.standard_error, abs=1e-3)
    change = all_right.change_to(right_or_wrong(512, 512))
    assert change.value == 0.0
    assert change.interval.high == pytest.approx(1.96 * math.sqrt(2) / 514, rel=1e-3)
    none = MeanCollected(lambda output, _: output)
    none.add(0, torch.zeros(512, dtype=torch.float64))
    assert none.figure().interval == Interval(0.0, 0.0), "a divergence from itself, as far as anybody knows"


def test_percent_of_samples_are_as_shares_of_them():
    one, other = right_or_wrong(500, 512), right_or_wrong(508, 512)
    percent, other_percent = right_or_wrong(500, 512, 100.0), right_or_wrong(508, 512, 100.0)
    assert (one.largest, percent.largest) == (1.0, 100.0)
    for shares, hundreds in (
        (one.figure(), percent.figure()),
        (one.change_to(other), percent.change_to(other_percent)),
    ):
        assert hundreds.interval.low == pytest.approx(100 * shares.interval.low)
        assert hundreds.interval.high == pytest.approx(100 * shares.interval.high)
    assert one.loss_to(one, 0.01, 1 / 0.01).interval == percent.loss_to(percent, 1.0, 100.0).interval
    decibels = MeanCollected(lambda output, _: output)
    decibels.add(0, torch.linspace(22, 36, 50, dtype=torch.float64))
    assert decibels.largest == 0.0
