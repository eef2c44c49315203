"""Weights drawn to the middles of their bins."""

from __future__ import annotations

import pytest
import torch

from calib.formats.integers import integer
from smpq.training.bits.bins import bin_loss
from smpq.training.lsq import LearnedWeight


def test_it_is_the_mean_and_the_variance_of_each_bin():
    weight = torch.tensor([[0.1, -0.3, 0.9, 1.2, -1.1, 9.0]], requires_grad=True)
    quantizer = LearnedWeight(torch.tensor([1.0]), integer(2))
    loss = bin_loss(weight, quantizer)
    bins = {0: [0.1, -0.3], 1: [0.9, 1.2], -1: [-1.1]}
    by_hand = 0.0
    for middle, values in bins.items():
        tensor = torch.tensor(values)
        by_hand += float((tensor.mean() - middle) ** 2 + tensor.var(unbiased=False))
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-5)
    loss.backward()
    assert torch.allclose(weight.grad, torch.tensor([[0.1, -0.3, -0.1, 0.2, -0.2, 0.0]]), atol=1e-6)
    assert quantizer.step.grad is None


def test_one_bit_and_weights_on_their_middles():
    quantizer = LearnedWeight(torch.tensor([0.5]), integer(1))
    assert float(bin_loss(torch.tensor([[0.5, -0.5, 0.5]]), quantizer).detach()) == 0
    assert float(bin_loss(torch.tensor([[0.25, -0.5]]), quantizer).detach()) == pytest.approx(0.25)
