"""SDQ's search: odds of the present width against the next one down."""

from __future__ import annotations

import pytest
import torch

from smpq.training.bits.choice import WidthChoice
from smpq.training.bits.settings import SdqSettings
from smpq.training.bits.stochastic import StochasticWeight
from tests.smpq.training.bits.trainable import rungs
from tests.smpq.tunable import tunable


def made(limit: float = 3.0, **settings: float) -> WidthChoice:
    found = rungs("w2a8,w3a8,w4a8", StochasticWeight, avg_bits=limit)
    return WidthChoice(found, SdqSettings(**settings), tunable(rounding="nearest").fake.calibration, 0)


def odds(found: WidthChoice) -> dict[str, float]:
    return {name.removeprefix("odds/"): value for name, value in found.to_json().items() if name.startswith("odds/")}


def test_widths_are_drawn_by_their_odds_and_by_the_seed():
    found = made()
    [(_, quantizer)] = found.rungs.quantizers("stem")
    drawn = []
    for step in range(400):
        found.begin(step, 0.0)
        drawn.append(float(quantizer.chosen.detach()))
    assert set(drawn) == {0.0, 1.0}
    assert sum(drawn) / 400 == pytest.approx(torch.sigmoid(torch.tensor(3.0)).item(), abs=0.03)
    found.begin(7, 0.0)
    assert float(quantizer.chosen.detach()) == drawn[7]


def test_pressure_lets_large_groups_fall_first_and_errors_hold_them():
    found = made(error=0.0)
    start = odds(found)
    found.pressure.weight = 1.0
    found.after(0.1)
    moved = {name: start[name] - value for name, value in odds(found).items()}
    parameters = {name: sum(unit.parameters for unit in units) for name, units in found.rungs.units.items()}
    assert sorted(moved, key=moved.__getitem__) == sorted(parameters, key=parameters.__getitem__)
    assert all(value > 0 for value in moved.values())

    held = made(error=1e6)
    held.pressure.weight = 1.0
    held.after(0.1)
    assert odds(held) == start, "the error of the width below is larger, and log-odds do not grow beyond their start"


def test_a_group_that_is_sure_falls_to_the_step_that_calibration_found():
    found = made()
    [(_, quantizer)] = found.rungs.quantizers("stem")
    below = quantizer.below_step.detach().clone()
    found.restore({**found.to_json(), "odds/stem": -5.0})
    found.adjust(0.1)
    assert found.rungs.lowered == ["stem"]
    assert str(found.rungs.policy["stem"]) == "w3a8"
    assert torch.equal(quantizer.step, below)
    assert odds(found)["stem"] == 3.0
    assert quantizer.below.bits == 2


def test_the_gradient_of_the_loss_moves_the_odds():
    found = made(error=0.0, probability_rate=1.0)
    found.pressure.weight = 0.0
    found.begin(0, 0.0)
    found._odds["stem"].grad = torch.tensor(-1.0)  # the present width lowers the loss
    found._odds["head"].grad = torch.tensor(1.0)
    found.after(0.1)
    assert odds(found)["stem"] == 3.0, "log-odds do not grow beyond their start"
    assert odds(found)["head"] == pytest.approx(3 - 0.05), "one batch does not decide"


def test_forcing_takes_the_smallest_error_for_what_it_saves():
    found = made()
    gain = {name: found._missed(name) / found.rungs.saved(name) for name in found.rungs.open}
    found.force()
    assert found.rungs.lowered == [min(gain, key=gain.__getitem__)]


def test_nothing_is_drawn_behind_the_search():
    found = made()
    found.begin(0, 0.0)
    found.settle()
    assert all(q.chosen is None for name in found.rungs.units for _, q in found.rungs.quantizers(name))
    assert float(found.refine().detach()) > 0
    assert made(bins=0.0).refine() is None
