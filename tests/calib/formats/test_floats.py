import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from calib.errors import UserError
from calib.formats.format import FP16, FP32, Format
from calib.formats.quantizers import QuantizedWeight, quantizer_from_range
from calib.observers import OBSERVERS, Observed
from calib.rounding import ROUNDINGS, Moments

FP8 = Format.from_text("fp8").weight


def onnx_values(values: torch.Tensor, scale: float) -> np.ndarray:
    """What QuantizeLinear and DequantizeLinear of FLOAT8E4M3FN make of them in ONNX Runtime."""
    helper, tensor = onnx.helper, onnx.TensorProto
    zero = helper.make_tensor("zero", tensor.FLOAT8E4M3FN, [], [0.0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, tensor.FLOAT, [len(values)]) for name in ("x", "y")]
    scales = onnx.numpy_helper.from_array(np.array(scale, np.float32), "scale")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [scales, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": values.numpy()})[0]


def test_values_are_those_of_onnx():
    generator = torch.Generator().manual_seed(0)
    quantizer = quantizer_from_range(-3.0, 2.0, FP8, "affine")
    assert (quantizer.scale, quantizer.zero_point) == (pytest.approx(3 / 448), 0)
    grid = torch.arange(-256, 257) / 512  # ties among them, and values below the smallest normal one
    values = torch.cat([torch.randn(4096, generator=generator), torch.linspace(-9, 9, 997), grid * quantizer.scale])
    before = values.clone()
    np.testing.assert_array_equal(quantizer(values).numpy(), onnx_values(values, quantizer.scale))
    assert torch.equal(values, before)
    assert quantizer.real_limits == pytest.approx((-3.0, 3.0))


@pytest.mark.parametrize("name", ["minmax", "percentile", "mse"])
def test_observers_choose_a_range(name):
    seen = Observed()
    seen.add(torch.randn(4000, generator=torch.Generator().manual_seed(0)))
    low, high = OBSERVERS[name](seen, FP8, "symmetric")
    assert seen.low <= low < -1.5
    assert 1.5 < high <= seen.high


def test_entropy_merges_even_bins_and_says_so():
    seen = Observed()
    seen.add(torch.ones(10))
    with pytest.raises(UserError, match="entropy is for integers, not for fp8: use mse, minmax or percentile"):
        OBSERVERS["entropy"](seen, FP8, "symmetric")


def test_gptq_lowers_the_error_of_the_output_here_too():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator) @ torch.randn(6, 32, generator=generator)
    x += 0.1 * torch.randn(400, 32, generator=generator)
    weight = torch.randn(12, 32, generator=generator)
    moments = Moments((x.T @ x / 400)[None])

    def error(rounded: QuantizedWeight) -> float:
        assert rounded.values.dtype == torch.float8_e4m3fn
        return float(((rounded.dequantize() - weight) @ x.T).square().mean())

    nearest, better = (
        error(ROUNDINGS[name](weight, moments, FP8, None, torch.zeros(12))) for name in ("nearest", "gptq")
    )
    assert better < 0.5 * nearest
    assert nearest < 0.04**2 * float((weight @ x.T).square().mean())


def test_what_half_and_single_precision_do_to_a_weight():
    weight = torch.tensor([0.1, 1e-9])
    assert torch.equal(FP16.weight.cast(weight), weight.half().float())
    assert FP32.weight.cast(weight) is None


def test_one_bit_has_two_levels_at_the_mean_magnitude():
    weight = torch.randn(4, 2000, generator=torch.Generator().manual_seed(0))
    moments = Moments(torch.eye(2000)[None])
    rounded = ROUNDINGS["nearest"](weight, moments, Format.from_text("w1a8").weight, None, torch.zeros(4))
    assert torch.equal(rounded.values.float(), torch.where(weight >= 0, 1.0, -1.0))
    torch.testing.assert_close(rounded.scale, weight.abs().mean(1), rtol=0.1, atol=0)
