"""Activations that are compared with what they were before rounding."""

from __future__ import annotations

import math

import pytest
import torch

from calib.formats.integers import integer
from calib.formats.quantizers import ActivationQuantizer
from smpq.training.bits.aligned import AlignedActivation, discrepancy, misfit

GRID = ActivationQuantizer(integer(4), 0.25, 0, signed=True)


def normal(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def module():
    return AlignedActivation(GRID).train()


def test_the_discrepancy_is_that_of_the_paper():
    one, other, bandwidth = normal(5), normal(5, 1), 0.7
    kernel = lambda a, b: math.exp(-((a - b) ** 2) / (2 * bandwidth**2))  # noqa: E731
    wanted = sum(
        kernel(one[i], one[j]) + kernel(other[i], other[j]) - 2 * kernel(one[i], other[j])
        for i in range(5)
        for j in range(5)
    )
    assert float(discrepancy(one, other, torch.tensor(math.log(bandwidth)))) == pytest.approx(wanted / 25, rel=1e-5)


def test_equal_samples_have_none_and_no_gradient():
    values = normal(64).requires_grad_()
    other = values.detach()[torch.randperm(64)].requires_grad_()
    found = discrepancy(values, other, torch.tensor(0.0))
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-6)
    assert values.grad.abs().max() < 1e-6
    assert other.grad.abs().max() < 1e-6


def test_samples_apart_are_drawn_together():
    fixed, moved = normal(200), (normal(200, 1) + 2).requires_grad_()
    found = discrepancy(fixed, moved, torch.tensor(0.0))
    found.backward()
    assert 0.3 < float(found.detach()) < 2
    assert moved.grad.mean() > 0, "less is nearer"


def test_bandwidths_are_where_the_density_fits_best():
    values = normal(128)
    rounded = GRID(values)
    spreads = torch.linspace(-6, 2, 33)
    fits = torch.stack([misfit(values, rounded, spread) for spread in spreads])
    best = int(fits.argmin())
    assert 0 < best < len(spreads) - 1, "neither no bandwidth nor an endless one"
    for place, sign in ((best - 4, -1), (best + 4, 1)):
        spread = spreads[place].clone().requires_grad_()
        misfit(values, rounded, spread).backward()
        assert spread.grad * sign > 0


def test_what_it_rounds_is_kept_while_it_is_trained():
    quantizer, values = module(), normal(1000).reshape(10, 100).requires_grad_()
    quantizer(values)
    rounded = quantizer(values * 2)
    ((before, after), (twice, last)) = quantizer.taken(50)
    assert quantizer.taken(50) == []
    assert before.shape == after.shape == (50,)
    assert torch.equal(twice, before * 2)
    assert torch.equal(after, GRID(before))
    assert torch.isin(last, rounded).all()
    assert len(before.unique()) == 50, "values from all over the tensor"
    with torch.no_grad():
        quantizer(values)
    quantizer.eval()(values)
    assert quantizer.taken(50) == []


def test_steps_and_bandwidths_get_gradients_and_what_is_rounded_does_not():
    quantizer, values = module(), normal(2000).requires_grad_()
    quantizer(values)
    ((before, after),) = quantizer.taken(256)
    discrepancy(before, after, quantizer.log_bandwidth.detach()).backward()
    assert quantizer.step.grad != 0
    assert quantizer.log_bandwidth.grad is None
    misfit(before, after.detach(), quantizer.log_bandwidth).backward()
    assert quantizer.log_bandwidth.grad != 0
    assert values.grad is None


def test_a_tensor_that_is_all_zeros_keeps_its_bandwidth_finite():
    quantizer = module()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=5.0)
    for _ in range(20):
        optimizer.zero_grad()
        quantizer(torch.zeros(100))
        ((before, after),) = quantizer.taken(32)
        (
            discrepancy(before, after, quantizer.log_bandwidth.detach())
            + misfit(before, after.detach(), quantizer.log_bandwidth)
        ).backward()
        optimizer.step()
        quantizer.project()
    assert torch.isfinite(quantizer.log_bandwidth)
    assert float(quantizer.log_bandwidth.detach()) == pytest.approx(math.log(0.25 / 1000), rel=1e-4)
