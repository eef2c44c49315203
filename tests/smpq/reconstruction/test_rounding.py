"""Roundings that are learned begin where they should, and end at integers of the type."""

import pytest
import torch

from calib.formats.format import Format
from calib.formats.integers import integer
from calib.formats.quantizers import QuantizedWeight
from calib.rounding import ROUNDINGS, Moments
from smpq.reconstruction.rounding import SoftWeight


@pytest.fixture(params=[None, 4])
def weight(request):
    """A weight, and integers of it that are rounded at random."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator)
    scale = torch.rand((6,) if request.param is None else (6, 2), generator=generator) + 0.3
    spread = scale[:, None] if request.param is None else scale.repeat_interleave(4, dim=1)
    low, high = integer(3).limits
    rounded = (weight / spread + torch.rand(weight.shape, generator=generator) - 0.5).round().clamp(low, high)
    return weight, QuantizedWeight(integer(3), rounded.to(torch.int8), scale, request.param), spread


def test_it_begins_at_the_calibrated_integers(weight):
    floats, calibrated, _ = weight
    soft = SoftWeight(floats, calibrated, "calibrated")
    assert torch.equal(soft.hard().values, calibrated.values)
    assert torch.equal(soft.hard().scale, calibrated.scale)


def test_it_begins_at_the_float_weight(weight):
    floats, calibrated, spread = weight
    soft = SoftWeight(floats, calibrated, "nearest")
    low, high = calibrated.type.limits
    inside = (floats / spread).clamp(low, high)
    assert torch.allclose(soft() / spread, inside, atol=0.02)
    assert (soft.hard().values - inside).abs().max() <= 0.5 + 1e-5


def test_every_variable_moves_its_integer_by_one_and_the_pull_ends_at_integers(weight):
    floats, calibrated, _ = weight
    soft = SoftWeight(floats, calibrated, "nearest")
    with torch.no_grad():
        soft.variables.fill_(10.0)
    up = soft.hard().values
    assert float(soft.pull(2.0).detach()) == 0
    with torch.no_grad():
        soft.variables.fill_(-10.0)
    assert torch.equal(up - soft.hard().values, torch.ones_like(up))
    with torch.no_grad():
        soft.variables.fill_(0.0)
    assert float(soft.pull(2.0).detach()) == pytest.approx(floats.numel())


def test_steps_are_learned_in_proportion(weight):
    floats, calibrated, _ = weight
    soft = SoftWeight(floats, calibrated, "calibrated")
    soft().sum().backward()
    assert soft.stretch.grad is not None
    assert soft.stretch.grad.shape == calibrated.scale.shape
    with torch.no_grad():
        soft.stretch.fill_(1.0)
    assert torch.allclose(soft.hard().scale, calibrated.scale * torch.e)


@pytest.mark.parametrize("text", ["wz2b4", "wz1b4", "wm2.5b4"])
@pytest.mark.parametrize("begin", ["calibrated", "nearest"])
def test_zero_points_and_widths_of_blocks_stay(text, begin):
    generator = torch.Generator().manual_seed(0)
    floats, chosen = torch.randn(6, 8, generator=generator), Format.from_text(text)
    grid = chosen.weight.with_widths(lambda: (1, 4))
    calibrated = ROUNDINGS["nearest"](floats, Moments(torch.eye(8)[None]), grid, 4, torch.zeros(6))
    soft = SoftWeight(floats, calibrated, begin)
    again = soft.hard()
    assert torch.equal(again.values, calibrated.values)
    assert torch.equal(again.scale, calibrated.scale)
    assert torch.equal(again.zero_point, calibrated.zero_point)
    assert again.type.block_widths == calibrated.type.block_widths
    torch.testing.assert_close(again.dequantize(), calibrated.dequantize())
    with torch.no_grad():
        soft.variables.fill_(10.0)
        soft.stretch.fill_(0.25)
    up = soft.hard()
    torch.testing.assert_close(soft().detach(), up.dequantize(), rtol=0.01, atol=0)
    for number, own in enumerate(grid.of_block(number) for number in range(2)):
        part = up.values[:, number * 4 : number * 4 + 4].float()
        assert torch.equal(own.round_(part.clone(), *own.limits), part)
        assert bool((part > own.limits[0]).all())
