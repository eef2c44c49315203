"""A weight that is drawn to the values of its grid."""

from __future__ import annotations

import pytest
import torch

from calib.formats.integers import integer
from smpq.training.bits.clustered import ClusteredWeight


def quantizer(step: float = 1.0, bits: int = 3, noise: float = 0.1) -> ClusteredWeight:
    made = ClusteredWeight(torch.tensor([step]), integer(bits))
    made.noise = noise
    return made


def slopes(at: torch.Tensor, **settings: float) -> torch.Tensor:
    weight = at.reshape(1, -1).clone().requires_grad_()
    quantizer(**settings)(weight).sum().backward()
    return weight.grad.reshape(-1)


def expected(at: torch.Tensor, bits: int, noise: float) -> torch.Tensor:
    """The expected value by its definition: the probability that noise takes a weight into each bin, over their sum."""
    low, high = integer(bits).limits
    values = torch.arange(low, high + 1, 2 if bits == 1 else 1, dtype=torch.float64)
    half = 1.0 if bits == 1 else 0.5
    borders = (values[:, None] - at.double(), half)
    share = torch.sigmoid((borders[0] + half) / (noise * 2 * half)) - torch.sigmoid(
        (borders[0] - half) / (noise * 2 * half)
    )
    return (values[:, None] * share).sum(0) / share.sum(0)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_it_is_the_nearest_value_forward(bits):
    weight = torch.linspace(-9, 9, 181).reshape(1, -1)
    low, high = integer(bits).limits
    wanted = torch.where(weight < 0, -1.0, 1.0) if bits == 1 else torch.round(weight / 0.7).clamp(low, high)
    assert torch.allclose(quantizer(0.7, bits)(weight).detach(), wanted * 0.7)


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize(("noise", "apart_at_most"), [(0.05, 0.01), (0.1, 0.02), (0.2, 0.15)])
def test_the_gradient_is_that_of_the_expected_value(bits, noise, apart_at_most):
    """Of which the borders further away are left out: they count where there is much noise."""
    low, high = integer(bits).limits
    at = torch.linspace(low + 0.01, high - 0.01, 57)
    apart = 1e-4
    wanted = (expected(at + apart, bits, noise) - expected(at - apart, bits, noise)) / (2 * apart)
    assert torch.allclose(slopes(at, bits=bits, noise=noise).double(), wanted, atol=apart_at_most)


def test_it_is_small_in_the_middle_of_a_bin_and_outside_of_the_grid():
    middle, border, outside, far = slopes(torch.tensor([1.0, 1.5, 3.8, -9.0])).tolist()
    assert 10 * middle < 2 < border
    assert 0 <= far < outside < 0.05


def test_the_step_is_learned_from_the_distance_and_from_what_is_outside():
    made = quantizer(noise=0.01)
    made(torch.tensor([[1.1, 9.0]])).backward(torch.tensor([[1.0, 0.0]]))
    scale = 1 / (2 * 3) ** 0.5
    assert made.step.grad.item() == pytest.approx(1 * scale, rel=1e-3), "without noise a value moves with its step"
    made.step.grad = None
    made(torch.tensor([[1.1, 9.0]])).backward(torch.tensor([[0.0, 1.0]]))
    assert made.step.grad.item() == pytest.approx(3 * scale, rel=1e-3)


def test_the_mask_drops_the_outer_half_of_the_values():
    made, weight = quantizer(bits=3), torch.tensor([[-4.0, -2.0, 0.0, 1.0, 3.0]])
    made.below = integer(2)
    for kept, wanted in (
        (None, weight),
        (1.0, weight),
        (0.0, weight.clamp(-2, 1)),
        (0.5, (weight + weight.clamp(-2, 1)) / 2),
    ):
        made.kept = None if kept is None else torch.tensor(kept)
        assert torch.equal(made(weight).detach(), wanted)
    made.kept = torch.tensor(0.0, requires_grad=True)
    by = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    (made(weight) * by).sum().backward()
    assert made.kept.grad.item() == pytest.approx(float((by * (weight - weight.clamp(-2, 1))).sum()))
