"""OHQ: what a mask changes, counted by hand; and how cost weighs against sensitivity."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from calib.formats.format import FP32, Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from smpq.methods import ohq, weight_error
from smpq.methods.ohq import _masked, least_harm, masked_divergences, weighed
from smpq.problem.costs import CostModel
from smpq.scoring.scores import Score, Scores
from smpq.solve.allocate import Ceiling
from smpq.value.divergence import divergence
from tests.smpq.problems import space_of

W4, W8 = Format.from_text("w4a8"), Format.from_text("w8a8")


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), shared, nn.ReLU(), shared, nn.Linear(6, 4)).eval()
    batches = [Batch((torch.randn(n, 5),), None) for n in (7, 4)]
    traced = TracedModel(model, (batches[0].inputs[0][:2],))
    found = SimpleNamespace(traced=traced, judging=batches, device="cpu", seed=2, task=SimpleNamespace())
    return model, found, find_units(traced)[0]


def test_a_mask_changes_the_output_as_if_the_module_had_it(problem):
    model, given, units = problem
    weights = [unit.weight for unit in units]
    advanced = []
    found = masked_divergences(given, weights, lambda: advanced.append(1))
    assert len(advanced) == len(weights) * len(given.judging)
    generator = torch.Generator().manual_seed(given.seed)
    inputs = torch.cat([batch.inputs[0] for batch in given.judging])
    for unit in units:
        weight = given.traced.state[unit.weight]
        for number in range(ohq.MASKS):
            masked = _masked(weight, generator)
            changed = copy.deepcopy(model)
            changed.get_submodule(unit.path).weight.data = masked
            with torch.no_grad():
                expected = divergence(changed(inputs), model(inputs)).mean() / (weight - masked).square().sum()
            assert found[unit.weight][number] == pytest.approx(float(expected), rel=1e-4), unit.path


def test_a_mask_hides_half_of_the_weights_by_seed():
    weight = torch.arange(1.0, 13).reshape(3, 4)
    one, again = (_masked(weight, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, again)
    assert int((one == 0).sum()) == 6
    assert torch.equal(one[one != 0], weight[one != 0])
    assert float(weight.min()) == 1, "the weight itself stays"


def test_a_weight_of_zeros_harms_nothing():
    traced = TracedModel(nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2)).eval(), (torch.randn(2, 3),))
    unit = find_units(traced)[0][0]
    traced.state[unit.weight].zero_()
    given = SimpleNamespace(
        traced=traced, judging=[Batch((torch.randn(3, 3),), None)], device="cpu", seed=0, task=SimpleNamespace()
    )
    assert np.array_equal(masked_divergences(given, [unit.weight])[unit.weight], np.zeros(ohq.MASKS))


def test_the_score_is_the_divergence_times_the_error_of_the_format(monkeypatch):
    space = space_of(2, (W4, W8, FP32))
    harms = {unit.weight: np.array([1.0, 3.0]) * (index + 1) for index, unit in enumerate(space.units)}
    errors = {W4: 2.0, W8: 0.5}

    @contextmanager
    def bar(_name, _total):
        yield lambda: None

    monkeypatch.setattr(ohq, "masked_divergences", lambda *_: harms)
    monkeypatch.setattr(weight_error, "squared_error", lambda _, __, chosen: errors[chosen])
    full = SimpleNamespace(space=space, fake_quantizer=None, progress=SimpleNamespace(bar=bar), judging=[1], seed=0)
    scores = ohq.ohq(full).linear
    assert {group: {f: s.value for f, s in row.items()} for group, row in scores.entries.items()} == {
        "g0": {W4: -4.0, W8: -1.0, FP32: 0.0},
        "g1": {W4: -8.0, W8: -2.0, FP32: 0.0},
    }
    assert scores.entries["g0"][W4].standard_error == pytest.approx(2.0)


def test_of_formats_with_the_same_weights_more_activation_bits_win(monkeypatch):
    narrow, wide = Format.from_text("w4a4"), Format.from_text("w4a16")
    space = space_of(2, (narrow, W4, wide, W8, FP32))
    monkeypatch.setattr(weight_error, "squared_error", lambda _, __, chosen: 4.0**-chosen.weight_bits)
    full = SimpleNamespace(space=space, fake_quantizer=None)
    samples = weight_error.weighed_errors(full, {unit.path: np.ones(2) for unit in space.units})
    assert samples["g0", narrow] < samples["g0", W4] < samples["g0", wide] < samples["g0", W8]
    assert samples["g0", wide] == [-(4.0**-4)] * 2
    assert samples["g0", narrow] == pytest.approx(samples["g0", wide], rel=1e-5)


def test_masks_of_weights_in_another_order_in_memory():
    weight = torch.randn(4, 3, 2, 2)
    seen = weight.contiguous(memory_format=torch.channels_last)
    one, other = (_masked(each, torch.Generator().manual_seed(1)) for each in (weight, seen))
    assert torch.equal(one, other)


def scores_of(values):
    cells = {group: {f: Score(v, 0.0, 1, v) for f, v in row.items()} for group, row in values.items()}
    return Scores(cells, "kl", "masks", 0, 0, 0, "", 0.0)


def test_cost_weighs_against_sensitivity():
    space = space_of(2, (W4, W8, FP32))
    values = {"g0": {W4: -4.0, W8: -1.0, FP32: 0.0}, "g1": {W4: -2.0, W8: -1.5, FP32: 0.0}}
    parts = {group: {W4: 1.0, W8: 2.0, FP32: 5.0} for group in values}
    size, latency = (CostModel(name, 0.0, parts, 10.0) for name in ("size", "latency"))
    dear = CostModel("size", 0.0, {group: dict.fromkeys(row, 7.0) for group, row in parts.items()}, 14.0)
    found = weighed(values, [Ceiling(size, 9.0)], 0.5, 0.5)
    assert found["g0"] == {W4: pytest.approx(0.0), W8: pytest.approx(0.375 - 0.125), FP32: pytest.approx(0.0)}
    assert weighed(values, [Ceiling(dear, 9.0), Ceiling(latency, 9.0)], 0.5, 0.5) == found, "the latency is what counts"
    assert weighed(values, [Ceiling(dear, 9.0)], 1.0, 1.0)["g0"][W4] == 0, "where all cost the same none is dearer"
    assert weighed(values, [], 1.0, 1.0)["g1"] == {W4: 0.5, W8: pytest.approx(0.625), FP32: 1.0}
    chosen = least_harm(space, scores_of(values), [Ceiling(size, 7.0)])
    assert chosen.formats == {"g0": W8, "g1": FP32}, "without a weight of the cost the limit alone counts"
