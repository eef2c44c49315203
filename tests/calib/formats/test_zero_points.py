"""Blocks with a scale and a zero point: what they are, how they are rounded, what they take,
and the file made of them.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from calib.errors import UserError
from calib.formats.format import Format
from calib.formats.quantizers import QuantizedWeight
from calib.formats.zero_points import zero_point
from calib.rounding import ROUNDINGS, Moments
from deploy.targets.target import capability, target_from_name
from smpq.problem.costs import weight_bytes
from tests.deploy.networks import mlp
from tests.smpq.problems import unit

OUT, LENGTH, BLOCK = 12, 64, 16


def weights(shift: float = 0.0) -> torch.Tensor:
    return torch.randn(OUT, LENGTH, generator=torch.Generator().manual_seed(0)) + shift


def moments() -> Moments:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 6, generator=generator) @ torch.randn(6, LENGTH, generator=generator)
    x += 0.1 * torch.randn(400, LENGTH, generator=generator)
    return Moments((x.T @ x / 400)[None])


def rounded(name: str, weight: torch.Tensor, bits: int, known: Moments | None = None) -> QuantizedWeight:
    return ROUNDINGS[name](weight, known or moments(), zero_point(bits), BLOCK, torch.zeros(OUT))


def error(found: QuantizedWeight, weight: torch.Tensor, matrix: torch.Tensor | None = None) -> float:
    difference = found.dequantize() - weight
    return float(((difference if matrix is None else difference @ matrix) * difference).sum())


@pytest.mark.parametrize("bits", range(1, 9))
def test_text_and_back(bits):
    chosen = Format.from_text(f"wz{bits}b32")
    assert str(chosen) == f"wz{bits}a16b32"
    assert (chosen.weight_bits, chosen.weight_block, chosen.activation) == (bits, 32, None)
    assert chosen.weight_key != Format.from_text(f"w{bits}b32").weight_key


@pytest.mark.parametrize("text", ["wz4", "wz4a16"])
def test_a_zero_point_for_a_whole_channel_is_refused(text):
    with pytest.raises(UserError, match="weights of type z4 need blocks: write for example wz4a16b32"):
        Format.from_text(text)


@pytest.mark.parametrize("text", ["w8az8", "wz4az4b32", "wz4a8b32", "wz9a16b32", "wz0b32"])
def test_other_wrong_text_is_a_user_error(text):
    with pytest.raises(UserError):
        Format.from_text(text)


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_fit_their_bits_and_zero_points_are_among_them(name, bits):
    found = rounded(name, weights(), bits)
    low, high = zero_point(bits).limits
    assert found.values.dtype == torch.uint8
    assert (int(found.values.min()), int(found.values.max())) == (low, high)
    assert found.scale.shape == found.zero_point.shape == (OUT, LENGTH // BLOCK)
    assert torch.equal(found.zero_point, found.zero_point.round())
    first, last = zero_point(bits).zero_point_limits
    assert first <= int(found.zero_point.min()) <= int(found.zero_point.max()) <= last
    assert torch.equal(found.scale, found.scale.bfloat16().float())


def test_one_bit_is_minus_and_plus_the_scale():
    found = rounded("nearest", weights(), 1)
    by_weight = found.scale.repeat_interleave(BLOCK, 1)
    assert torch.equal(found.dequantize(), torch.where(weights() >= 0, by_weight, -by_weight))
    magnitudes = weights().abs().reshape(OUT, -1, BLOCK).mean(2)
    torch.testing.assert_close(found.scale, magnitudes, rtol=0.15, atol=0)


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_one_sided_blocks_lose_less_than_without_a_zero_point(name, bits):
    weight, known = weights(3.0).abs(), moments()
    symmetric = ROUNDINGS[name](weight, known, Format.from_text(f"w{bits}b{BLOCK}").weight, BLOCK, torch.zeros(OUT))
    assert error(rounded(name, weight, bits), weight, known.matrix[0]) < 0.6 * error(symmetric, weight, known.matrix[0])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gptq_lowers_the_error_of_the_output(bits):
    weight, known = weights(), moments()
    nearest, better = (error(rounded(name, weight, bits), weight, known.matrix[0]) for name in ("nearest", "gptq"))
    assert better < 0.6 * nearest


@pytest.mark.parametrize("power", [-60, 40])
def test_tiny_and_huge_weights_are_rounded_as_usual_ones_are(power):
    usual, other = rounded("gptq", weights(), 3), rounded("gptq", weights() * 2.0**power, 3)
    assert torch.equal(other.values, usual.values)
    assert torch.equal(other.scale, usual.scale * 2.0**power)


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("bits", [2, 4])
def test_zero_is_exact_and_rows_of_zeros_stay_zero(name, bits):
    weight = weights()
    weight[3], weight[:, 5] = 0.0, 0.0
    found = rounded(name, weight, bits, Moments(torch.eye(LENGTH)[None])).dequantize()
    assert not found[3].any()
    assert not found[:, 5].any()


def test_bytes_are_packed_values_scales_of_16_bits_and_zero_points():
    assert weight_bytes(unit("a", 72), Format.from_text("wz4b3")) == 36 + 24 * (16 + 4) / 8
    assert weight_bytes(unit("a", 72), Format.from_text("wz2b3")) == 18 + 24 * (16 + 2) / 8
    assert weight_bytes(unit("a", 72), Format.from_text("wz1b3")) == 9 + 24 * 16 / 8


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_the_file_of_simulate_holds_what_was_computed(tmp_path, bits):
    exported = mlp()
    lowered = exported.lower(exported.formats(f"wz{bits}a16b{BLOCK}"), "simulate", tmp_path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # its kernels round inputs of blocks
    session = ort.InferenceSession(str(lowered.path), options)
    (output,) = session.run(None, {session.get_inputs()[0].name: exported.batch.numpy()})
    np.testing.assert_allclose(output, lowered.expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("ort-cpu", "as fast without zero points"),
        ("tensorrt-rtx", "symmetric, without zero points"),
        ("tensorrt-10.3", "symmetric, without zero points"),
        ("jetson-thor", "symmetric, without zero points"),
    ],
)
def test_targets_without_such_kernels_say_why(target, reason):
    found = capability(target_from_name(target), "linear", Format.from_text("wz4a16b32"), 64)
    assert found.status == "refused"
    assert reason in found.note
