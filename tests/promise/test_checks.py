"""The check of the promise can fail: state, randomness and wrong numbers are seen, and its bounds are narrow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from tests.promise.bounds import Noise, rms
from tests.promise.comparing import WrongError, _check_float, _check_rms
from tests.promise.networks import generated, recipe_from_seed
from tests.promise.oddities import _State
from tests.promise.oracle import ask

STATES = ("count", "alternate", "first", "last", "lazy", "grow", "buffer", "average", "parameter")


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 4, generator=generator),) for count in (1, 1, 3)]


@pytest.mark.parametrize("how", STATES)
def test_state_is_seen(how):
    assert ask(_State(how, (4,)), batches()).unstable is not None


@pytest.mark.parametrize("how", ["kept", "copy", "fill"])
def test_state_that_no_result_depends_on_is_none(how):
    assert ask(_State(how, (4,)), batches()).unstable is None


def test_randomness_is_seen():
    assert ask(
        nn.Sequential(nn.Linear(4, 4), type("Stuck", (nn.Dropout,), {"train": lambda self, mode=True: self})()),
        batches(),
    ).unstable


def test_a_size_that_the_module_does_not_take_has_no_answer():
    outputs = ask(
        nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), [*batches(), (torch.randn(5, 4),)]
    ).outputs
    assert [output is None for output in outputs] == [True, True, False, False]


def test_wrong_values_shapes_and_types_are_seen():
    values, none = torch.linspace(0, 1, 6).reshape(2, 3), torch.zeros(2, 3)
    _check_float("it", [values * (1 + 1e-6)], [values], [none], 2)
    wrong = [values + 1e-3, values.double(), values.reshape(3, 2), values.log()]
    for each in wrong:
        with pytest.raises(WrongError):
            _check_float("it", [each], [values], [none], 2)
    with pytest.raises(WrongError, match="2 outputs"):
        _check_float("it", [values, values], [values], [none], 2)
    with pytest.raises(WrongError, match="not finite"):
        _check_rms("it", values / 0, values, torch.tensor(1e9), "there")


def test_the_bounds_are_a_few_percent_for_eight_bits_and_less_than_a_millionth_for_floats():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    batch = (torch.randn(16, 8),)
    traced = TracedModel(model, batch)
    units, _ = find_units(traced)
    calibration = Calibration(traced, units, [Batch(batch, None)], CalibrationSettings("minmax", "nearest", "affine"))
    plan = FakeQuantizer(traced, units, calibration, QdqRules("affine")).plan(
        {unit.path: Format.from_text("w8a8") for unit in units}
    )
    noise = Noise(traced, [batch], seed=0)
    size = rms(model(*batch))
    (steps,) = noise.of_formats(batch, plan, units)
    assert 0.002 < steps / size < 0.05
    (floats,) = noise.of_floats(batch)
    assert 0 < rms(floats) / size < 1e-6


def test_equal_seeds_make_equal_networks():
    for seed in range(20):
        one, two = (generated(recipe_from_seed(seed)) for _ in range(2))
        assert one.parts == two.parts
        assert [name for name, _ in one.module.named_modules()] == [name for name, _ in two.module.named_modules()]
        assert all(torch.equal(a, b) for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(one.inputs(3, 1), two.inputs(3, 1), strict=True))


def test_two_in_five_networks_have_an_adversarial_feature():
    odd = sum(bool(recipe_from_seed(seed).odd) for seed in range(1000))
    assert 350 < odd < 450
