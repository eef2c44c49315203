"""A weight of one of two widths."""

from __future__ import annotations

import pytest
import torch

from calib.formats.integers import integer
from smpq.training.bits.stochastic import StochasticWeight


def made() -> tuple[torch.Tensor, StochasticWeight]:
    weight = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    quantizer = StochasticWeight(torch.tensor([0.1, 0.2, 0.3]), integer(4))
    with torch.no_grad():
        quantizer.below_step.copy_(torch.tensor([0.5, 0.6, 0.7]))
    quantizer.below = integer(2)
    return weight, quantizer


def by_hand(weight, step, bits):
    low, high = integer(bits).limits
    spread = step.reshape(-1, 1, 1)
    return torch.round(weight / spread).clamp(low, high) * spread


def test_it_is_one_of_both():
    weight, quantizer = made()
    high, low = by_hand(weight, quantizer.step, 4), by_hand(weight, quantizer.below_step, 2)
    for chosen, wanted in ((None, high), (torch.tensor(1.0), high), (torch.tensor(0.0), low)):
        quantizer.chosen = chosen
        assert torch.allclose(quantizer(weight), wanted)


def test_the_choice_gets_the_gradient_of_the_difference():
    weight, quantizer = made()
    high, low = by_hand(weight, quantizer.step, 4).detach(), by_hand(weight, quantizer.below_step, 2).detach()
    quantizer.chosen = torch.tensor(0.0, requires_grad=True)
    by = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (quantizer(weight) * by).sum().backward()
    assert torch.allclose(quantizer.chosen.grad, (by * (high - low)).sum(), rtol=1e-5)
    assert torch.count_nonzero(quantizer.step.grad) == 0, "the width that was not chosen learns nothing"
    assert torch.count_nonzero(quantizer.below_step.grad) == 3


def test_errors_are_relative_squares():
    weight, quantizer = made()
    weight = weight.detach()
    high, low = quantizer.errors(weight)
    whole = weight.square().sum()
    for found, step, bits in ((high, quantizer.step, 4), (low, quantizer.below_step, 2)):
        apart = (weight - by_hand(weight, step.detach(), bits)).square().sum()
        assert found == pytest.approx(float(apart / whole), rel=1e-5)


def test_steps_stay_positive():
    _, quantizer = made()
    with torch.no_grad():
        quantizer.step.fill_(-1)
        quantizer.below_step.fill_(-1)
    quantizer.project()
    assert bool((quantizer.step > 0).all())
    assert bool((quantizer.below_step > 0).all())
