import itertools
import math

import pytest
import torch
from torch import nn

from calib import moments
from calib.calibrate import Calibration, CalibrationSettings
from calib.errors import UserError
from calib.formats.format import Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch

W8, W4 = Format.from_text("w8a8"), Format.from_text("w4b4")
WIDTHS = (8, 64, 32, 64, 16)
"""The moments of the second layer take 16 KiB and its weight 8; while it is rounded, 8 times as much besides."""
ROOMS = {"least": 16 + 8 * 24, "more": 17 + 8 * 24, "all": 37 + 8 * 24}
"""In KiB."""


class Passes(list):
    """Batches that count how often they are gone through."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(one, two), nn.ReLU()) for one, two in itertools.pairwise(WIDTHS)]
    traced = TracedModel(nn.Sequential(*layers).eval(), (torch.randn(2, WIDTHS[0]),))
    return traced, find_units(traced)[0]


def calibrated(network, memory_kib=None):
    batches = Passes(
        Batch((torch.randn(40, WIDTHS[0], generator=torch.Generator().manual_seed(n)),), None) for n in range(3)
    )
    memory_mb = None if memory_kib is None else memory_kib / 1024
    return Calibration(*network, batches, CalibrationSettings(), memory_mb), batches


class Closings:
    """Takes the place of `Gaps`, and notes what it is told."""

    def __init__(self):
        self.sizes = []

    def __call__(self):
        return self

    def close(self, size):
        self.sizes.append(size)


def prepared(network, memory_kib):
    calibration, batches = calibrated(network, memory_kib)
    calibration.prepare(network[1], {unit.path: (W8, W4) for unit in network[1]}, lambda: None)
    return calibration.digest(), batches.passes


@pytest.mark.parametrize(("room", "passes"), [("least", 3), ("more", 2), ("all", 1)])
def test_a_limit_takes_more_passes_and_changes_no_integer(network, room, passes):
    whole, once = prepared(network, None)
    assert once == 1
    assert prepared(network, ROOMS[room]) == (whole, passes)


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_held_is_within_the_limit(network, room):
    calibration, _ = calibrated(network, ROOMS[room])
    moments = calibration._moments
    for unit in network[1]:
        copies = moments[unit.path].matrix.nbytes + calibration.traced.state[unit.weight].nbytes
        assert sum(each.matrix.nbytes for each in moments._held.values()) + 8 * copies <= ROOMS[room] * 1024


def test_moments_are_dropped_behind_the_last_weight_and_come_back_when_asked_for(network):
    calibration, batches = calibrated(network)
    unit = network[1][1]
    before = calibration._moments[unit.path].matrix
    calibration.prepare(network[1], {unit.path: (W8,) for unit in network[1]}, lambda: None)
    assert not calibration._moments._held
    assert torch.equal(calibration._moments[unit.path].matrix, before)
    assert batches.passes == 2


def test_a_layer_that_does_not_fit_is_named_where_it_is_rounded(network):
    calibration, batches = calibrated(network, ROOMS["least"] - 1)
    first, second, *_ = network[1]
    assert torch.equal(calibration.weight(first, W8).values, calibrated(network)[0].weight(first, W8).values)
    path = second.path
    with pytest.raises(
        UserError, match=rf"rounding {path} takes 0.203 MB .* more than the 0.2\d* MB that it may: raise --mem"
    ):
        calibration.weight(second, W8)
    assert batches.passes == 1


def test_without_a_limit_it_is_most_of_what_is_free(network, monkeypatch):
    monkeypatch.setattr(moments, "free_bytes", lambda: ROOMS["more"] * 1024 / 0.75)
    assert len(calibrated(network)[0]._moments.parts) == len(calibrated(network, ROOMS["more"])[0]._moments.parts) > 1
    monkeypatch.setattr(moments, "free_bytes", lambda: math.inf)
    assert len(calibrated(network)[0]._moments.parts) == 1


def test_groups_of_a_convolution_count():
    traced = TracedModel(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)).eval(), (torch.randn(2, 8, 5, 5),))
    units, _ = find_units(traced)
    needed = (9 * 8 * 81 + 8 * 8 * 9) * 4 / 2**20
    batches = [Batch((torch.randn(2, 8, 5, 5),), None)]
    assert Calibration(traced, units, batches, CalibrationSettings(), needed)._moments[units[0].path].matrix.shape == (
        8,
        9,
        9,
    )
    with pytest.raises(UserError, match="raise --memory-limit"):
        _ = Calibration(traced, units, batches, CalibrationSettings(), needed * 0.99)._moments[units[0].path]


def test_the_heap_is_looked_after_behind_each_batch_and_each_layer(network, monkeypatch):
    batches, layers = Closings(), Closings()
    monkeypatch.setattr("calib.moments.Gaps", batches)
    monkeypatch.setattr("calib.calibrate.Gaps", layers)
    prepared(network, None)
    assert batches.sizes == [40 * WIDTHS[0] * 4] * 3
    assert layers.sizes == [one * two * 4 for one, two in itertools.pairwise(WIDTHS)]


def test_the_rows_of_a_convolution_do_not_stay_on_some_columns():
    columns = torch.arange(35.0).expand(1, 1, 35, 35)
    found = moments._gathered(columns, [1, 1], [1, 1], [0, 0], [1, 1], 35 * 35 // 7)
    assert len(set(found.flatten().tolist())) == 35


def test_the_rows_of_a_linear_layer_do_not_stay_on_some_tokens():
    traced = TracedModel(nn.Sequential(nn.Linear(1, 2)).eval(), (torch.randn(2, 6, 1),))
    (unit,), _ = find_units(traced)
    tokens = torch.arange(6.0)[:, None].expand(10, 6, 1)
    assert len(set(moments._patches(traced, unit, unit.calls[0], tokens, 20).flatten().tolist())) == 6
