import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from calib.formats.integers import integer
from calib.formats.quantizers import ActivationQuantizer, QuantizedWeight, quantizer_from_range

RANGES = [(-1.3, 2.7), (0.0, 6.0), (-4.0, 0.0), (0.2, 3.0), (-3.0, -1.0), (-1e-4, 3e-4), (-50.0, 900.0), (0.0, 0.0)]


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_equals_the_fake_quantisation_of_torch(low, high, bits, scheme):
    quantizer = quantizer_from_range(low, high, integer(bits), scheme)
    torch.manual_seed(0)
    span = max(high - low, 1e-3)
    values = torch.cat([torch.randn(4096) * span, torch.linspace(low - span, high + span, 4096), torch.zeros(1)])
    before = values.clone()
    expected = torch.fake_quantize_per_tensor_affine(values, quantizer.scale, quantizer.zero_point, *quantizer.limits)
    torch.testing.assert_close(quantizer(values), expected, rtol=1e-6, atol=0)
    assert torch.equal(values, before)


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_covers_the_range_and_holds_zero_exactly(low, high, bits, scheme):
    quantizer = quantizer_from_range(low, high, integer(bits), scheme)
    smallest, largest = quantizer.limits
    assert largest - smallest == 2**bits - 1
    assert smallest <= quantizer.zero_point <= largest
    assert quantizer(torch.zeros(3)).tolist() == [0.0] * 3
    real_low, real_high = quantizer.real_limits
    # rounding the zero point moves both ends by at most half a step
    assert real_low <= min(low, 0.0) + 0.51 * quantizer.scale
    assert real_high >= max(high, 0.0) - 0.51 * quantizer.scale


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("power", [-40, -80, -110])
def test_tiny_tensors_keep_as_many_steps_as_large_ones(power, scheme):
    values = torch.linspace(-1, 2, 1001)
    usual = quantizer_from_range(-1.0, 2.0, integer(8), scheme)
    tiny = quantizer_from_range(-(2.0**power), 2.0 ** (power + 1), integer(8), scheme)
    assert torch.equal(tiny(values * 2.0**power), usual(values) * 2.0**power)


def test_the_smallest_step_has_an_inverse():
    quantizer = quantizer_from_range(0.0, 1e-40, integer(8), "affine")
    assert torch.isfinite(quantizer(torch.tensor([0.0, 1e-40, 1e-38, 1.0]))).all()


def test_the_two_schemes():
    affine = quantizer_from_range(0.0, 2.55, integer(8), "affine")
    assert (affine.limits, affine.zero_point, affine.signed) == ((0, 255), 0, False)
    assert affine.scale == pytest.approx(0.01)
    symmetric = quantizer_from_range(-1.27, 0.5, integer(8), "symmetric")
    assert (symmetric.limits, symmetric.zero_point, symmetric.signed) == ((-128, 127), 0, True)
    assert symmetric.scale == pytest.approx(0.01)


def test_the_step_is_a_float32_as_in_the_engine():
    scale = quantizer_from_range(-0.1, 0.7, integer(8), "affine").scale
    assert scale == float(torch.tensor(scale, dtype=torch.float32))


def test_values_beyond_the_range_are_clipped():
    quantizer = ActivationQuantizer(integer(4), 0.5, 3, signed=False)
    assert quantizer(torch.tensor([-9.0, 99.0, 0.3, 0.2])).tolist() == [-1.5, 6.0, 0.5, 0.0]


@pytest.mark.parametrize(("bits", "limits"), [(2, (-2, 1)), (4, (-8, 7)), (8, (-128, 127))])
def test_weight_limits(bits, limits):
    assert integer(bits).limits == limits


def test_dequantize_by_channel_and_by_block():
    integers = torch.tensor([[1, 2, -3, 4], [0, -1, 1, 2]], dtype=torch.int8)
    by_channel = QuantizedWeight(integer(4), integers.reshape(2, 1, 2, 2), torch.tensor([0.5, 2.0])).dequantize()
    assert by_channel.tolist() == [[[[0.5, 1.0], [-1.5, 2.0]]], [[[0.0, -2.0], [2.0, 4.0]]]]
    by_block = QuantizedWeight(integer(4), integers, torch.tensor([[0.5, 2.0], [1.0, 10.0]]), 2).dequantize()
    assert by_block.tolist() == [[0.5, 1.0, -6.0, 8.0], [0.0, -1.0, 10.0, 20.0]]


def test_values_on_a_grid_are_rounded_as_onnx_rounds_them(tmp_path):
    """Pixels over 255 with a step of 3.2 / 255 lie halfway between two integers again and again."""
    pixels = (torch.arange(256) / 255 * 3).float()
    quantizer = quantizer_from_range(0.0, 3.2, integer(8), "affine")
    scale = onnx.numpy_helper.from_array(np.array(quantizer.scale, np.float32), "scale")
    zero = onnx.numpy_helper.from_array(np.array(quantizer.zero_point, np.uint8), "zero")
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [tensor("x", onnx.TensorProto.FLOAT, [256])],
        [tensor("y", onnx.TensorProto.FLOAT, [256])],
        [scale, zero],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": pixels.numpy()})
    np.testing.assert_array_equal(quantizer(pixels).numpy(), expected)
