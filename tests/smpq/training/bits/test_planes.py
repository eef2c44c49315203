"""BSQ's search: a lasso on bit planes of which none is stored."""

from __future__ import annotations

import math

import pytest
import torch

from smpq.training.bits.planes import PlaneLasso
from smpq.training.bits.rungs import ratio
from smpq.training.bits.settings import BsqSettings
from tests.smpq.training.bits.trainable import rungs


def made(**settings: float) -> PlaneLasso:
    return inside(PlaneLasso(rungs("w2a8,w3a8,w4a8"), BsqSettings(**settings), 0.1))


def inside(found: PlaneLasso) -> PlaneLasso:
    """Bring weights that are beyond the largest integers back to them."""
    with torch.no_grad():
        for name in found.rungs.open:
            for weight, quantizer in found.rungs.quantizers(name):
                step, (low, high) = quantizer.spread(weight), quantizer.limits
                weight.copy_(weight.maximum(low * step).minimum(high * step))
    return found


def lowest_bits(weight, quantizer, below):
    """The bits of the integers that the next width down does not have, worked out bit by bit."""
    fine = quantizer.grid.round_(weight / quantizer.spread(weight), *quantizer.limits)
    return torch.remainder(fine, ratio(quantizer.grid, below))


def test_the_share_of_set_bits_is_that_of_the_lowest_plane():
    found = made()
    [(weight, quantizer)] = found.rungs.quantizers("stem")
    with torch.no_grad():
        integers = torch.randint(-8, 7, weight.shape, generator=torch.Generator().manual_seed(0)).float()
        weight.copy_(integers * quantizer.spread(weight))
        bits = lowest_bits(weight, quantizer, found.rungs.below("stem"))
    inside = integers <= 2 * found.rungs.below("stem").limits[1]
    assert bool(inside.all())
    assert found._set_bits("stem") == pytest.approx(float((bits != 0).float().mean()))


def test_a_proximal_step_shortens_the_rest_and_nothing_else():
    found = made()
    rests = found._rests("stem")
    before = [(weight.clone(), rest.clone()) for weight, rest, _ in rests]
    norm = math.sqrt(sum(float((rest / span).square().sum()) for _, rest, span in rests))
    found.pressure.weight = norm / 4 / found.rungs.share("stem")
    found.after(1.0)
    for (weight, rest), (now, _, _) in zip(before, found._rests("stem"), strict=True):
        assert torch.allclose(now, weight - rest / 4, atol=1e-6)
    found.pressure.weight = 1e9
    found.after(1.0)
    assert all(float(rest.abs().max()) < 1e-6 for _, rest, _ in found._rests("stem"))
    assert found._set_bits("stem") == 0


def test_an_empty_plane_is_stripped_without_a_change():
    found = made()
    found.pressure.weight = 1e9
    found.after(1.0)
    with torch.no_grad():
        before = {name: [q(w) for w, q in found.rungs.quantizers(name)] for name in found.rungs.open}
    steps = {name: [q.step.clone() for _, q in found.rungs.quantizers(name)] for name in found.rungs.open}
    for name in list(found.rungs.open):
        found.rungs.lower(name)
        with torch.no_grad():
            for (weight, quantizer), was, step in zip(
                found.rungs.quantizers(name), before[name], steps[name], strict=True
            ):
                assert torch.allclose(quantizer(weight), was, atol=1e-6)
                assert torch.equal(quantizer.step, 2 * step)


def test_adjusting_strips_what_is_empty_until_the_budget_is_met():
    found = inside(PlaneLasso(rungs("w2a8,w3a8,w4a8", avg_bits=3.5), BsqSettings(), 0.1))
    found.pressure.weight = 1e9
    found.after(1.0)
    found.adjust(0.1)
    assert found.rungs.met
    assert len(found.rungs.lowered) < len(found.rungs.ladders), "it goes no further than it has to"


def test_full_planes_stay():
    found = made(empty=0.0)
    found.adjust(0.1)
    assert found.rungs.lowered == []


def test_pressure_follows_the_cost():
    found = made()
    first = found.pressure.weight
    found.adjust(0.5)
    assert found.pressure.weight == pytest.approx(first * 1.3), "nothing was lost: behind"
    for name in list(found.rungs.open):
        found.rungs.lower(name)
    found.pressure.start = 4.0
    found.adjust(0.0)
    assert found.pressure.weight == pytest.approx(first), "ahead"


def test_a_group_of_few_set_bits_is_the_cheapest():
    found = made()
    for name in found.rungs.open:
        found._fit(name)
    rest = found._rests("deep")
    with torch.no_grad():
        for weight, left, _ in rest:
            weight.sub_(left)
    found.force()
    assert found.rungs.lowered == ["deep"]


def test_numbers_come_back():
    found, other = made(), made()
    found.adjust(0.5)
    other.restore(found.to_json())
    assert other.to_json() == found.to_json()
