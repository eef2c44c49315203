from dataclasses import replace

import pytest
import torch
from torch import nn

from calib.formats.format import FP16, FP32, Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from smpq.problem.costs import CostModel, Transition, bit_operations, cost_models, is_integer, weight_bytes
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from tests.smpq.problems import W4A16, W8A8, unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fp32", 72 * 4),
        ("fp16", 72 * 2),
        ("w8a8", 72 + 8 * 4),
        ("w4a16", 36 + 8 * 4),
        ("w3a8", 27 + 8 * 4),
        ("w4a16b3", 36 + 8 * 3 * 4),
    ],
)
def test_bytes_of_one_weight(text, expected):
    assert weight_bytes(unit("a", 72), Format.from_text(text)) == expected  # eight rows of nine


def test_bits_that_do_not_fill_a_byte_are_rounded_up():
    assert weight_bytes(unit("a", 8), Format.from_text("w3a8")) == 3 + 8 * 4
    odd = replace(unit("a"), weight_shape=(1, 3), parameters=3)
    assert weight_bytes(odd, Format.from_text("w3a8")) == 2 + 4


@pytest.mark.parametrize(("text", "per_mac"), [("w8a8", 64), ("w2a4", 8), ("w4a16", 64), ("fp16", 256), ("fp32", 1024)])
def test_bit_operations(text, per_mac):
    assert bit_operations(unit("a", 64), Format.from_text(text)) == 64 * per_mac


def test_only_integer_activations_make_an_integer_layer():
    assert [is_integer(f) for f in (W8A8, W4A16, FP16, FP32)] == [True, False, False, False]


def test_a_network_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, 5)).eval()
    traced = TracedModel(model, (torch.randn(2, 2, 3, 3),))
    groups = find_groups(traced, find_units(traced)[0])
    space = Space(groups, {group.name: (W8A8, W4A16, FP32) for group in groups}, FP32)
    costs = cost_models(space, traced)
    policy = Policy({"0": W8A8, "3": W4A16})
    rest = 4 * (
        4 + 4 * 4 + 5
    )  # both biases, and what is left of the norm: two parameters and two statistics for each channel
    assert costs["size"].total(policy) == rest + (72 + 4 * 4) + (180 / 2 + 5 * 4)
    assert costs["size"].float_total == costs["size"].total(space.uniform(FP32)) == rest + 4 * (72 + 180)
    assert costs["bops"].total(policy) == 9 * 72 * 64 + 180 * 4 * 16
    assert costs["bops"].float_total == (9 * 72 + 180) * 1024
    assert costs["avg_bits"].total(policy) == pytest.approx((8 * 72 + 4 * 180) / 252)
    assert costs["avg_bits"].float_total == pytest.approx(32)


def test_the_float_total_is_fp32_also_where_the_reference_is_not():
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    traced = TracedModel(model, (torch.randn(2, 4),))
    groups = find_groups(traced, find_units(traced)[0])
    space = Space(groups, {"0": (W8A8,)}, FP16)
    size = cost_models(space, traced)["size"]
    assert size.total(space.uniform(FP16)) == 8 + 32, "the bias is in FP16 too"
    assert size.float_total == 16 + 64


def test_a_transition_costs_when_the_domains_differ():
    parts = {name: {W8A8: 1.0, W4A16: 2.0, FP32: 4.0} for name in "ab"}
    model = CostModel("latency", 10.0, parts, 18.0, (Transition("a", "b", 0.5),))
    assert model.total(Policy({"a": W8A8, "b": W8A8})) == 12.0
    assert model.total(Policy({"a": W8A8, "b": FP32})) == 15.5
    assert model.total(Policy({"a": W4A16, "b": W8A8})) == 13.5
    assert model.total(Policy({"a": W4A16, "b": FP32})) == 16.0


def test_the_size_is_that_of_what_a_runtime_stores():
    traced = TracedModel(nn.Sequential(nn.Linear(8, 8, bias=False)).eval(), (torch.randn(2, 8),))
    units, _ = find_units(traced)
    groups = find_groups(traced, units)
    seven, eight = Format.from_text("w7a8"), Format.from_text("w8a8")
    space = Space(groups, {group.name: (seven, eight, FP32) for group in groups}, FP32)
    policies = [space.uniform(chosen) for chosen in (seven, eight)]
    plain, held = (
        cost_models(space, traced),
        cost_models(space, traced, lambda _, chosen: eight if chosen == seven else chosen),
    )
    assert plain["size"].total(policies[0]) < plain["size"].total(policies[1])
    assert held["size"].total(policies[0]) == held["size"].total(policies[1]) == plain["size"].total(policies[1])
    assert held["avg_bits"].total(policies[0]) == 7
