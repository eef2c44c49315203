"""Tables for input channels: widths that come to the average, clusters, outliers, what they take, and the file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from calib.errors import UserError
from calib.formats.format import Format
from calib.formats.table_weights import TableWeight
from calib.formats.tables import kept_weights, place_bits
from calib.rounding import Moments, round_tables, tables
from calib.rounding.tables import widths_of_channels
from deploy.targets.target import capability, target_from_name
from smpq.methods import METHODS
from smpq.problem.costs import weight_bytes
from tests.deploy.networks import mlp, residual
from tests.smpq.problems import unit

OUT, LENGTH = 64, 40


def weights() -> torch.Tensor:
    return torch.randn(OUT, LENGTH, generator=torch.Generator().manual_seed(0))


def moments() -> Moments:
    return Moments(torch.diag(torch.logspace(2, -2, LENGTH))[None])


def rounded(text: str, weight: torch.Tensor | None = None) -> TableWeight:
    weight = weights() if weight is None else weight
    found = round_tables(weight, moments(), Format.from_text(text).weight, None, torch.zeros(len(weight)))
    assert isinstance(found, TableWeight)
    return found


def test_text_and_back():
    chosen = Format.from_text("wc2.5")
    assert str(chosen) == "wc2.5a16"
    assert chosen.weight_bits == 2.5
    for wrong in ("wc2.5b32", "wc2.3", "wc1", "w8ac2"):
        with pytest.raises(UserError):
            Format.from_text(wrong)
    with pytest.raises(UserError, match="go with float activations: write wc2a16"):
        Format.from_text("wc2a8")


@pytest.mark.parametrize("average", [1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.75, 4.0])
@pytest.mark.parametrize("channels", [1, 7, 10, 64])
def test_the_average_is_hit_within_one_channel(average, channels):
    activations = torch.rand(channels, generator=torch.Generator().manual_seed(1))
    widths = widths_of_channels(activations, average)
    assert 0 <= average * channels - int(widths.sum()) < 1
    assert bool((widths[activations.argsort()].diff() >= 0).all()), "large activations have more bits"
    assert int(widths.max() - widths.min()) == (2 if average % 1 == 0 else 1) if channels >= 10 else True


def test_one_bit_has_no_channel_with_none():
    assert widths_of_channels(torch.rand(20), 1.5).min() == 1


@pytest.mark.parametrize("text", ["wc1.5", "wc2", "wc3.25"])
def test_a_channel_has_as_many_numbers_as_its_bits_say(text):
    found = rounded(text)
    result = found.dequantize()
    kept = torch.zeros(OUT * LENGTH, dtype=torch.bool)
    kept[found.kept] = True
    for column, width in enumerate(found.widths):
        plain = result[:, column][~kept.reshape(OUT, LENGTH)[:, column]]
        assert len(plain.unique()) <= 2**width
        assert int(found.values[:, column].max()) < 2**width
    assert torch.equal(found.scale, found.scale.bfloat16().float())


def test_no_number_is_nearer_and_numbers_are_means_of_their_weights():
    found, weight = rounded("wc2"), weights()
    kept = torch.zeros(OUT * LENGTH, dtype=torch.bool)
    kept[found.kept] = True
    counted = ~kept.reshape(OUT, LENGTH)
    for column, width in enumerate(found.widths):
        table = found.scale[column, : 2**width]
        distances = (weight[:, column, None] - table).abs()
        assert torch.equal(distances.argmin(1), found.values[:, column].long())
        for place in range(2**width):
            own = weight[:, column][(found.values[:, column] == place) & counted[:, column]]
            assert len(own) == 0 or float(table[place]) == pytest.approx(float(own.mean()), rel=0.02, abs=0.02)


def test_two_kinds_of_outliers_are_kept_as_they_are():
    weight = weights()
    weight[5, 0], weight[7, LENGTH // 2] = 30.0, 4.0
    found = rounded("wc2", weight)
    assert len(found.kept) == kept_weights(weight.numel()) == 12
    assert 5 * LENGTH in found.kept.tolist()
    result = found.dequantize().flatten()
    assert torch.equal(result[found.kept], weight.flatten()[found.kept].bfloat16().float())
    large = (found.kept % LENGTH) < LENGTH // 10  # the channels with the largest activations
    assert int(large.sum()) >= 6


def test_with_all_weights_kept_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(tables, "kept_weights", lambda weights: 2 * weights)
    monkeypatch.setattr(tables, "_LARGE_CHANNELS", 1.0)
    assert torch.equal(rounded("wc2").dequantize(), weights().bfloat16().float())


def test_what_is_stored():
    found = rounded("wc2.5")
    kept = 12 * (16 + place_bits(OUT * LENGTH))
    assert place_bits(OUT * LENGTH) == 12
    assert found.stored_bits() == OUT * sum(found.widths) + 16 * sum(2**width for width in found.widths) + kept
    expected = 72 * 2 // 8 + -(-(9 * 4 * 16) // 8)
    assert kept_weights(72) == 0
    assert weight_bytes(unit("a", 72), Format.from_text("wc2")) == expected


@pytest.mark.parametrize("text", ["wc1.5", "wc1.75", "wc2", "wc2.5", "wc4"])
def test_the_cost_of_a_format_is_what_its_weights_take(text):
    found, chosen = rounded(text), Format.from_text(text)
    besides = chosen.weight.overhead_bits(OUT, LENGTH, None)
    assert found.stored_bits() == OUT * sum(found.widths) + besides
    assert 0 <= OUT * LENGTH * chosen.weight_bits - OUT * sum(found.widths) < OUT


def test_clusters_need_no_memory_for_all_distances_at_once(monkeypatch):
    whole = rounded("wc2.5")
    monkeypatch.setattr(tables, "_AT_ONCE", 1)
    assert rounded("wc2.5").content() == whole.content()


def test_everything_counts_in_the_digest():
    found = rounded("wc2")
    for other in (
        replace(found, kept=found.kept + 1),
        replace(found, kept_as=found.kept_as + 1),
        replace(found, scale=found.scale + 1),
        replace(found, values=found.values + 1),
    ):
        assert other.content() != found.content()


@pytest.mark.parametrize("make", [mlp, residual])
def test_the_file_of_simulate_holds_what_was_computed(tmp_path, make):
    exported = make()
    lowered = exported.lower(exported.formats("wc2.5"), "simulate", tmp_path)
    session = ort.InferenceSession(str(lowered.path))
    (output,) = session.run(None, {session.get_inputs()[0].name: exported.batch.numpy()})
    np.testing.assert_allclose(output, lowered.expected, rtol=1e-3, atol=1e-4)
    floats = exported.lower(exported.formats("fp32"), "simulate", tmp_path)
    assert np.abs(lowered.expected - floats.expected).max() > 0.002


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt-rtx", "jetson-orin"])
def test_other_targets_refuse_and_say_why(target):
    found = capability(target_from_name(target), "linear", Format.from_text("wc2.5"), 64)
    assert (found.status, "no kernel reads weights from tables" in found.note) == ("refused", True)
    assert capability(target_from_name("simulate"), "embedding", Format.from_text("wc2"), 64).status == "refused"


def test_the_method_says_what_it_decides():
    assert METHODS["cmpq"].decides == "input channels"
