"""Blocks with widths of their own: the average that a name says, what they take,
and what is left of a layer's error.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import onnxruntime as ort
import pytest
import torch

from calib.errors import UserError
from calib.formats.format import Format
from calib.formats.mixed_widths import WIDTHS, bits_of_blocks
from calib.formats.quantizers import QuantizedWeight
from calib.rounding import ROUNDINGS, Moments
from calib.rounding.widths import WIDTH_RULES, width_rule_from_name
from calib.rounding.widths.error import cheapest
from deploy.targets.target import capability, target_from_name
from smpq.problem.costs import cost_models, weight_bytes
from smpq.problem.policy import Group, Policy, Space
from tests.deploy.networks import mlp
from tests.smpq.problems import unit

OUT, LENGTH, BLOCK = 12, 64, 8
AVERAGES = (1.25, 1.5, 2.0, 2.25, 2.5, 3.0, 3.75)


def weights(seed: int = 0) -> torch.Tensor:
    """Weights whose first columns are large, so that blocks differ."""
    columns = torch.logspace(0.5, -0.5, LENGTH)
    return torch.randn(OUT, LENGTH, generator=torch.Generator().manual_seed(seed)) * columns


def moments(seed: int = 1) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 6, generator=generator) @ torch.randn(6, LENGTH, generator=generator)
    x += 0.3 * torch.randn(400, LENGTH, generator=generator)
    return Moments((x.T @ x / 400)[None])


@cache
def widths_of(rule: str, average: float, block: int) -> tuple[int, ...]:
    return WIDTH_RULES[rule](weights(), moments(), average, block)


def rounded(method: str, rule: str, average: float) -> QuantizedWeight:
    chosen = Format.from_text(f"wm{average:g}b{BLOCK}").weight
    grid = chosen.with_widths(lambda: widths_of(rule, average, BLOCK))
    return ROUNDINGS[method](weights(), moments(), grid, BLOCK, torch.zeros(OUT))


def output_error(found: QuantizedWeight) -> float:
    difference = found.dequantize() - weights()
    return float(((difference @ moments().matrix[0]) * difference).sum())


@pytest.mark.parametrize(("text", "bits"), [("wm2b32", 2.0), ("wm2.5a16b32", 2.5), ("wm1.25b8", 1.25)])
def test_text_and_back(text, bits):
    chosen = Format.from_text(text)
    assert (chosen.weight_bits, chosen.activation) == (bits, None)
    assert Format.from_text(str(chosen)) == chosen
    assert str(chosen).startswith(f"wm{bits:g}a16b")


@pytest.mark.parametrize(
    "text", ["wm2.5", "wm2.5a8b32", "wm2.3b32", "wm2.50b32", "wm1b32", "wm9b32", "w2.5a16", "w8am2"]
)
def test_wrong_text_is_a_user_error(text):
    with pytest.raises(UserError):
        Format.from_text(text)


def test_decided_widths_are_no_other_type():
    chosen = Format.from_text("wm2.5b32")
    decided = replace(chosen, weight=chosen.weight.with_widths(lambda: (2, 3)))
    assert decided == chosen
    assert decided.weight_key == chosen.weight_key
    assert decided.weight.of_block(1).bits == 3
    with pytest.raises(ValueError, match="decided by a width rule first"):
        chosen.weight.of_block(0)


@pytest.mark.parametrize("rule", WIDTH_RULES)
@pytest.mark.parametrize(
    ("average", "block"), [*((average, 32) for average in AVERAGES), (1.25, 8), (2.5, 16), (3.75, 8)]
)
def test_a_rule_meets_the_average_within_a_bit_of_one_block(rule, average, block, monkeypatch):
    monkeypatch.setattr("calib.rounding.widths.graph._STEPS", 20)  # however well it has learned
    widths = WIDTH_RULES[rule](weights(), moments(), average, block)
    assert len(widths) == LENGTH // block
    assert set(widths) <= set(WIDTHS)
    assert sum(widths) == bits_of_blocks(average, len(widths))
    assert 0 <= average * len(widths) - sum(widths) < 1


@pytest.mark.parametrize("rule", WIDTH_RULES)
@pytest.mark.parametrize("method", ROUNDINGS)
@pytest.mark.parametrize("average", [1.5, 2.5])
def test_numbers_fit_the_width_of_their_block(rule, method, average):
    found = rounded(method, rule, average)
    for number, width in enumerate(found.type.widths):
        part = found.values[:, number * BLOCK : (number + 1) * BLOCK]
        assert int(part.max()) <= max(2**width - 1, 2)
    assert len(set(found.type.widths)) > 1


@pytest.mark.parametrize("rule", WIDTH_RULES)
def test_widths_that_differ_beat_one_width(rule):
    uniform = ROUNDINGS["gptq"](weights(), moments(), Format.from_text("wz2b8").weight, BLOCK, torch.zeros(OUT))
    assert output_error(rounded("gptq", rule, 2.0)) < 0.8 * output_error(uniform)


@pytest.mark.parametrize("rule", WIDTH_RULES)
def test_the_blocks_that_matter_get_the_bits(rule):
    widths = WIDTH_RULES[rule](weights(), Moments(torch.eye(LENGTH)[None]), 2.5, BLOCK)
    assert list(widths) == sorted(widths, reverse=True)


def test_the_cheapest_widths_are_those_of_all_sums():
    generator = torch.Generator().manual_seed(3)
    costs = torch.rand(4, len(WIDTHS), generator=generator).tolist()
    for bits in range(4, 33, 3):
        every = [
            sum(row[width - 1] for row, width in zip(costs, widths, strict=True))
            for widths in product(WIDTHS, repeat=4)
            if sum(widths) == bits
        ]
        found = cheapest(costs, bits)
        assert sum(found) == bits
        assert sum(row[width - 1] for row, width in zip(costs, found, strict=True)) == pytest.approx(min(every))


def test_what_is_stored_counts_every_block():
    found = rounded("nearest", "error", 2.0)
    own = sum(OUT * (BLOCK * width + 16 + (0 if width == 1 else width)) for width in found.type.widths)
    assert found.stored_bits() == own
    whole = Format.from_text("wm2.5b3")
    assert weight_bytes(unit("a", 72), whole) == math.ceil(72 * 2.5 / 8) + math.ceil(24 * (16 + 2.5) / 8)


def test_the_average_is_a_cost_like_any_other():
    exported = mlp()
    formats = tuple(Format.from_text(text) for text in ("wm2b16", "wm2.5b16"))
    groups = tuple(Group(each.path, (each,)) for each in exported.units)
    space = Space(groups, dict.fromkeys((group.name for group in groups), formats), Format.from_text("fp32"))
    bits = cost_models(space, exported.traced)["avg_bits"]
    assert bits.total(Policy(dict.fromkeys(space.formats, formats[1]))) == pytest.approx(2.5)


@pytest.mark.parametrize("average", [2.0, 2.5])
def test_the_file_of_simulate_holds_what_was_computed(tmp_path, average):
    exported = mlp()
    lowered = exported.lower(exported.formats(f"wm{average:g}a16b16"), "simulate", tmp_path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(lowered.path), options)
    (output,) = session.run(None, {session.get_inputs()[0].name: exported.batch.numpy()})
    np.testing.assert_allclose(output, lowered.expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt-rtx", "jetson-orin"])
@pytest.mark.parametrize("text", ["wm2b32", "wm2.5b32"])
def test_other_targets_refuse_and_say_why(target, text):
    found = capability(target_from_name(target), "linear", Format.from_text(text), 64)
    assert found.status == "refused"
    assert "use one width a layer" in found.note
    assert capability(target_from_name("simulate"), "linear", Format.from_text(text), 64).status == "native"
    assert capability(target_from_name("simulate"), "conv2d", Format.from_text(text), 64).status == "refused"


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(UserError, match="error, slim, graph"):
        width_rule_from_name("down")


@pytest.mark.parametrize("rule", WIDTH_RULES)
def test_groups_of_inputs_are_a_bug(rule):
    with pytest.raises(ValueError, match="one group of inputs"):
        WIDTH_RULES[rule](weights(), Moments(torch.eye(LENGTH).expand(2, -1, -1)), 2.0, BLOCK)
