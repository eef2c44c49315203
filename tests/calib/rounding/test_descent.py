"""GPTQ, then numbers and steps in turn."""

from __future__ import annotations

import pytest
import torch

from calib.formats.format import Format
from calib.formats.number_type import NUMBER_TYPES
from calib.formats.quantizers import QuantizedWeight
from calib.rounding import ROUNDINGS, Moments
from tests.calib.rounding.test_rounding import LENGTH, OUT, correlated, weight_of

TYPES = ("w2a16", "w3a8", "w2a16b8", "wz2a16b8", "wz3a16b16", "wz1a16b8", "wfp8a16")


def rounded(name: str, text: str, moments: Moments, weight: torch.Tensor) -> QuantizedWeight:
    chosen = Format.from_text(text)
    return ROUNDINGS[name](weight, moments, chosen.weight, chosen.weight_block, torch.zeros(len(weight)))


def errors(found: torch.Tensor, weight: torch.Tensor, moments: Moments) -> torch.Tensor:
    difference = (found - weight).reshape(len(moments.matrix), -1, weight.shape[1])
    return ((difference @ moments.matrix) * difference).sum(2).reshape(-1)


@pytest.mark.parametrize("text", TYPES)
@pytest.mark.parametrize("seed", range(2))
def test_every_row_is_at_least_as_good_as_by_gptq_and_most_are_better(text, seed):
    moments, weight = correlated(seed=seed), weight_of(seed)
    before, after = (
        errors(rounded(name, text, moments, weight).dequantize(), weight, moments) for name in ("gptq", "descent")
    )
    assert bool((after <= before * 1.0001).all())
    assert float(after.sum()) < 0.99 * float(before.sum())


@pytest.mark.parametrize("text", ["w2a16", "w3a16b8", "wz2a16b8"])
def test_no_single_number_can_be_better(text, monkeypatch):
    monkeypatch.setattr("calib.rounding.descent._PASSES", 40)  # until nothing moves
    monkeypatch.setattr("calib.rounding.descent._ROUNDS", 1)
    monkeypatch.setattr("calib.rounding.descent._best_steps", lambda *given: given[2])
    moments, weight = correlated(), weight_of()
    found = rounded("descent", text, moments, weight)
    least, (low, high) = errors(found.dequantize(), weight, moments), found.type.limits
    for column in range(LENGTH):
        for change in (-1, 1):
            values = found.values.int()
            values[:, column] = (values[:, column] + change).clamp(low, high)
            other = QuantizedWeight(
                found.type, found.type.stored(values.float()), found.scale, found.block, found.zero_point
            )
            assert bool((errors(other.dequantize(), weight, moments) >= least * 0.9999).all())


@pytest.mark.parametrize("text", ["w2a16", "w3a16b8"])
def test_steps_are_the_best_for_their_numbers(text):
    moments, weight = correlated(), weight_of()
    from calib.rounding.descent import _best_steps
    from calib.rounding.grids import Grid

    start = rounded("gptq", text, moments, weight)
    grid = Grid(start.type, start.block, start.scale)
    found = _best_steps(weight, start.values.float(), grid, moments.matrix, torch.zeros(OUT))
    least = errors(found.weight(start.values.float()).dequantize(), weight, moments)
    for factor in (0.98, 1.02):
        other = Grid(start.type, start.block, found.scale * factor)
        assert bool((errors(other.weight(start.values.float()).dequantize(), weight, moments) > least).all())


@pytest.mark.parametrize("text", ["w4a16", "wfp8a16"])
def test_groups_are_solved_each_alone(text):
    moments, weight = correlated(groups=3), weight_of()
    together = rounded("descent", text, moments, weight)
    rows = OUT // 3
    for group in range(3):
        part = slice(group * rows, (group + 1) * rows)
        alone = rounded("descent", text, Moments(moments.matrix[group : group + 1]), weight[part])
        torch.testing.assert_close(together.scale[part], alone.scale, rtol=1e-3, atol=0)
        assert (together.values[part] != alone.values).float().mean() < 0.02


@pytest.mark.parametrize(("text", "groups"), [("w3a16b8", 1), ("w4a16", 3)])
def test_few_rows_at_a_time_give_the_same(text, groups, monkeypatch):
    moments, weight = correlated(groups=groups), weight_of()
    whole = rounded("descent", text, moments, weight)
    monkeypatch.setattr("calib.rounding.descent._AT_ONCE", 1)
    found = rounded("descent", text, moments, weight)
    torch.testing.assert_close(found.scale, whole.scale, rtol=1e-4, atol=0)
    assert (found.values != whole.values).float().mean() < 0.02


def test_one_step_for_all_channels_stays_one():
    found = ROUNDINGS["descent"](weight_of(), correlated(), NUMBER_TYPES["t7"], None, torch.zeros(OUT))
    assert len(found.scale.unique()) == 1


@pytest.mark.parametrize("power", [-60, 40])
def test_tiny_and_huge_weights_are_rounded_as_usual_ones_are(power):
    usual = rounded("descent", "wz2a16b8", correlated(), weight_of())
    other = rounded("descent", "wz2a16b8", correlated(), weight_of() * 2.0**power)
    assert torch.equal(other.values, usual.values)
    torch.testing.assert_close(other.scale, usual.scale * 2.0**power)
