"""DropBits: masks of the highest bits."""

from __future__ import annotations

import pytest
import torch

from smpq.training.bits.clustered import ClusteredWeight
from smpq.training.bits.drop import BitDrop
from smpq.training.bits.settings import CpqSettings
from tests.smpq.training.bits.trainable import rungs

KEPT_AT_FIRST = torch.sigmoid(torch.tensor(3 + 2 / 3 * 2.3979)).item()


def made(formats: str = "w2a8,w3a8,w4a8", limit: float = 3.0, **settings: float) -> BitDrop:
    return BitDrop(rungs(formats, ClusteredWeight, avg_bits=limit), CpqSettings(**settings), 0)


def test_masks_are_drawn_from_the_hard_concrete_distribution():
    found = made()
    [(_, quantizer)] = found.rungs.quantizers("stem")
    found.restore({**found.to_json(), "odds/stem": -1.0})
    drawn = []
    for step in range(1000):
        found.begin(step, 0.0)
        drawn.append(float(quantizer.kept.detach()))
    above, at_one = sum(kept > 0 for kept in drawn) / 1000, sum(kept == 1 for kept in drawn) / 1000
    assert above == pytest.approx(torch.sigmoid(torch.tensor(-1 + 2 / 3 * 2.3979)).item(), abs=0.04)
    assert at_one == pytest.approx(torch.sigmoid(torch.tensor(-1 - 2 / 3 * 2.3979)).item(), abs=0.04)
    found.begin(7, 0.0)
    assert float(quantizer.kept.detach()) == drawn[7]
    found.settle()
    assert quantizer.kept is None


def test_the_loss_and_the_pressure_move_the_odds():
    found = made(probability_rate=1.0)
    found.pressure.weight = 0.0
    found._odds["stem"].grad, found._odds["head"].grad = torch.tensor(-1.0), torch.tensor(1.0)
    found.after(0.1)
    odds = found.to_json()
    assert odds["odds/stem"] == 3.0, "what lowers the loss is kept, and log-odds do not grow beyond their start"
    assert odds["odds/head"] == pytest.approx(3 - 0.05), "one batch does not decide"
    found.pressure.weight = 1.0
    found._odds["stem"].grad = None
    found.after(0.1)
    assert found.to_json()["odds/stem"] < 3.0


def test_a_probability_is_that_of_anything_but_nothing():
    found = made(least=0.5)
    assert found._probability("stem") == pytest.approx(KEPT_AT_FIRST)
    assert found._expected() < found.rungs.excess
    found.restore({**found.to_json(), "odds/stem": -1.5})
    found.adjust(0.1)
    assert found.rungs.lowered == [], "a mask that is zero less than half of the time"
    found.restore({**found.to_json(), "odds/stem": -1.7})
    found.adjust(0.1)
    assert found.rungs.lowered == ["stem"]
    assert found.to_json()["odds/stem"] == 3.0


def test_values_within_the_inner_half_stay_where_the_outer_half_is_lost():
    found = made("w3a8,w4a8", limit=3.9)
    [(weight, quantizer)] = found.rungs.quantizers("stem")
    with torch.no_grad():
        step = quantizer.spread(weight).clone()
        weight.copy_(torch.arange(weight.numel()).reshape(weight.shape).remainder(8).sub(4) * step)
        before = quantizer(weight).clone()
        found._fall("stem")
        assert str(found.rungs.policy["stem"]) == "w3a8"
        assert torch.allclose(quantizer(weight), before, rtol=1e-4)


@pytest.mark.parametrize("formats", ["w2a8,w3a8,w4a8", "w1a8,w2a8", "w4a8,w8a8"])
def test_steps_are_those_of_the_smallest_error_on_average(formats):
    found = made(formats, limit=7.9 if "w8" in formats else 1.9 if "w1" in formats else 3.0)
    for name in found.rungs.open:
        for weight, quantizer in found._quantizers(name):
            kept = found._probability(name)
            chosen, step = _average(weight, quantizer, kept), quantizer.step.detach().clone()
            for factor in (0.5, 0.8, 1.25, 2.0):
                with torch.no_grad():
                    quantizer.step.copy_(step * factor)
                assert chosen <= _average(weight, quantizer, kept) * 1.02
            with torch.no_grad():
                quantizer.step.copy_(step)


def test_forcing_takes_what_is_missed_least_for_what_it_saves():
    found = made()
    missed = {name: found._missed(name) / found.rungs.saved(name) for name in found.rungs.open}
    found.force()
    assert found.rungs.lowered == [min(missed, key=missed.__getitem__)]


def _average(weight, quantizer, kept):
    with torch.no_grad():
        spread = quantizer.spread(weight)
        high, low = (
            float((weight - grid.round_(weight / spread, *grid.limits) * spread).square().sum())
            for grid in (quantizer.grid, quantizer.below)
        )
    return kept * high + (1 - kept) * low
