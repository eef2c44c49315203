from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calib.errors import UserError
from smpq.value.loss import Loss, loss_of, stated_point


class Task:
    metric_name = "top-1"


def test_the_interval_covers_the_true_change_of_a_share():
    """Bonett and Price: the interval holds its level even where few samples change."""
    generator = np.random.default_rng(0)
    for lost, gained in ((0.01, 0.005), (0.03, 0.03), (0.002, 0.0)):
        covered = 0
        for _ in range(400):
            drawn = generator.choice([1.0, -1.0, 0.0], size=300, p=[lost, gained, 1 - lost - gained])
            low, high = loss_of(torch.tensor(drawn)).interval
            covered += low <= lost - gained <= high
        assert covered >= 0.92 * 400


def test_few_samples_without_a_change_show_little():
    few, many = loss_of(torch.zeros(20)), loss_of(torch.zeros(20_000))
    assert few.mean == many.mean == 0.0
    assert not few.within(0.1)
    assert many.within(0.001)


def test_without_a_change_a_sample_could_still_have_lost_all_of_a_share():
    found = loss_of(torch.zeros(256), largest=100.0)
    assert not found.within(1.0), "256 samples do not show a point"
    assert loss_of(torch.zeros(found.samples_needed(1.0) + 10), largest=100.0).within(1.0)


def test_a_verdict_needs_the_upper_end():
    found = Loss(0.3, 0.15, 1000)
    assert found.within(0.6)
    assert not found.within(0.5)
    needed = found.samples_needed(0.5)
    assert needed == pytest.approx((1.96 * 0.15 * math.sqrt(1000) / 0.2) ** 2, abs=1)
    assert Loss(0.3, 0.15 * math.sqrt(1000 / needed), needed).within(0.5001)
    assert found.samples_needed(0.2) is None, "more samples would not help"


def test_a_point_is_what_the_task_says():
    task = Task()
    assert stated_point(task) == 0.01
    task.metric_name = "PSNR"
    assert stated_point(task) is None
    task.metric_point = 0.5
    assert stated_point(task) == 0.5
    for wrong in (0, -1, math.inf, "one"):
        task.metric_point = wrong
        with pytest.raises(UserError, match=r"metric_point is .*: it must be a number above zero"):
            stated_point(task)
