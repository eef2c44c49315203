"""The TensorRT back end on small graphs: what builds, what is refused and why."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from calib.errors import UserError
from calib.formats.format import FP16, Format
from deploy.backends.tensorrt import (
    RUNTIMES,
    BuildFailed,
    Built,
    build_plan,
    check_units,
    gpu_sm,
    load,
    open_plan,
)
from deploy.lowering.export import SIZES
from deploy.runner import cuda_library
from deploy.targets.target import capability, target_from_name
from tests.deploy.backends.builds import W4, W4B32, W8, W8A8, build, build_layer, check_layer, needs_rtx, reason_of
from tests.deploy.backends.graphs import CHANNELS, Graph, Layer, add_layer, one_layer

ROOT = Path(__file__).resolve().parents[3]


@needs_rtx
def test_four_bits_stay_four_bits_in_the_plan(tmp_path):
    size = {
        str(format_): build_layer(Layer("linear", format_), tmp_path).weights_bytes for format_ in (FP16, W8, W4B32)
    }
    elements = 256 * 256
    assert size["fp16"] >= 2 * elements
    assert elements <= size["w8a16"] < 1.1 * elements
    assert elements // 2 <= size["w4a16b32"] < 0.6 * elements


@needs_rtx
def test_four_bit_weight_behind_an_integer_convolution_does_not_build(tmp_path):
    layer = Layer("conv2d", W4, activation_format=W8A8)
    assert "Myelin" in reason_of(build_layer(layer, tmp_path))


@needs_rtx
def test_a_convolution_with_block_scales_does_not_parse(tmp_path):
    reason = reason_of(build_layer(Layer("conv2d", W4B32), tmp_path))
    assert "blocking dimension must be the last or second to last" in reason
    # Anything that fails where there is no GPU complains about the driver as well; that is no reason.
    assert "driver" not in reason


@needs_rtx
def test_unsigned_activations_are_refused(tmp_path):
    """With zero point 0 the parser warns and reads them as INT8; a plan that cuts off at 127 is not what the file
    says.
    """
    unsigned = Layer("conv2d", W8A8, zero_point=np.asarray(0, np.uint8))
    assert "UINT8" in reason_of(build_layer(unsigned, tmp_path))
    assert "zero point" in reason_of(build_layer(Layer("conv2d", W8A8, affine=True), tmp_path))


@needs_rtx
@pytest.mark.parametrize("layer", [
    Layer("conv2d", W8A8, zero_point=np.asarray(3, np.int8)), Layer("conv2d", W8A8, weight_zero_point=1),
    Layer("linear", W4B32, weight_zero_point=1),
])  # fmt: skip
def test_zero_points_are_zero(layer, tmp_path):
    assert "Non-zero zero point is not supported" in reason_of(build_layer(layer, tmp_path))


@needs_rtx
@pytest.mark.parametrize("operator", ["conv2d", "linear"])
def test_an_integer_bias_does_not_parse(operator, tmp_path):
    assert "Int32" in reason_of(build_layer(Layer(operator, W8A8, integer_bias=True), tmp_path))


@needs_rtx
def test_blocks_that_do_not_divide_the_inputs(tmp_path):
    """The parser goes by the number of scales, so a wrong block size passes unseen: the capability table must stand
    before it.
    """
    assert "whole blocks" in reason_of(
        build_layer(Layer("linear", Format.from_text("w4a16b48"), block_rows=5), tmp_path)
    )
    unseen = Layer("linear", Format.from_text("w4a16b128"), in_features=250, block_rows=2)
    assert isinstance(build_layer(unseen, tmp_path), Built)
    assert capability(target_from_name("tensorrt-rtx"), "linear", unseen.format, 250).status == "refused"


@needs_rtx
def test_one_single_block_is_not_fused(tmp_path):
    check = check_layer(Layer("linear", Format.from_text("w4a16b256")), tmp_path)
    assert (check.found, check.agrees) == ("dequantized", False)


@needs_rtx
def test_four_bit_weights_come_in_pairs(tmp_path):
    layer = Layer("linear", W4, in_features=33, out_features=33)
    assert "even number of elements" in reason_of(build_layer(layer, tmp_path))
    assert capability(target_from_name("tensorrt-rtx"), "linear", W4, 33, out_features=33).status == "refused"


@needs_rtx
@pytest.mark.parametrize("dtype", [ml_dtypes.uint4, ml_dtypes.int2, np.int16])
def test_other_integer_types_do_not_parse(dtype, tmp_path):
    graph = Graph(TensorProto.FLOAT16)
    names = [
        graph.constant("weight", np.ones((64, 64)).astype(dtype)),
        graph.scale("scale", np.full(64, 0.01)),
        graph.constant("zero_point", np.zeros(64).astype(dtype)),
    ]
    output = graph.node("MatMul", "unit", ["x", graph.node("DequantizeLinear", "unit/DQw", names, axis=1)])
    assert "Failed to import initializer" in reason_of(build(graph.model({"x": (2, 64)}, [output]), tmp_path))


@needs_rtx
def test_dynamic_quantisation_does_not_parse(tmp_path):
    graph = Graph()
    graph.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], name="dynamic"))
    output = graph.node("DequantizeLinear", "dequantize", ["q", "scale", "zero"])
    assert "DynamicQuantizeLinear dynamic" in reason_of(build(graph.model({"x": (2, 64)}, [output]), tmp_path))


@needs_rtx
@pytest.mark.parametrize("opset", [13, 17, 20, 21, 22, 25])
def test_opsets(opset, tmp_path):
    assert check_layer(Layer("conv2d", W8A8), tmp_path, opset=opset).agrees
    if opset >= 21:
        assert check_layer(Layer("linear", W4B32), tmp_path, opset=opset).agrees


@needs_rtx
def test_a_free_batch_needs_its_sizes(tmp_path):
    graph = Graph(TensorProto.FLOAT16)
    output = add_layer(graph, Layer("conv2d", W8A8), "x")
    model = graph.model({"x": ("n", CHANNELS, 8, 8)}, [output])
    assert "shape of input 'x' is free" in reason_of(build(model, tmp_path))
    record = build(model, tmp_path, batch_sizes=(1, 4, 16))
    assert check_units(record.layers, {"unit": W8A8})[0].agrees
    model = graph.model({"x": ("n", CHANNELS, "height", 8)}, [output])
    assert "is free" in reason_of(build(model, tmp_path, batch_sizes=(1, 4, 16)))
    sizes = {"x": [[CHANNELS, 4, 8], [CHANNELS, 8, 8], [CHANNELS, 16, 8]]}
    model.metadata_props.add(key=SIZES, value=json.dumps(sizes))
    assert check_units(build(model, tmp_path, batch_sizes=(1, 4, 16)).layers, {"unit": W8A8})[0].agrees


@needs_rtx
def test_the_record_tells_what_was_built(tmp_path):
    record = build_layer(Layer("conv2d", W8A8), tmp_path, "SM89")
    plan = tmp_path / "model.plan"
    assert plan.stat().st_size == record.row.size_bytes
    assert not list(tmp_path.glob("*.unfinished"))
    assert record.row.versions == {"tensorrt-rtx": load("tensorrt-rtx").__version__}


@needs_rtx
def test_a_failed_build_leaves_the_plan_as_it_was(tmp_path):
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"as it was")
    assert isinstance(build_layer(Layer("conv2d", W4B32), tmp_path), BuildFailed)
    assert plan.read_bytes() == b"as it was"


@needs_rtx
def test_wrong_files_and_names(tmp_path):
    source, plan = tmp_path / "model.onnx", tmp_path / "new" / "model.plan"
    with pytest.raises(UserError, match="no such ONNX file"):
        build_plan(source, plan, "tensorrt-rtx", "sm86")
    source.write_bytes(b"not a model")
    assert "Failed to parse" in reason_of(build_plan(source, plan, "tensorrt-rtx", "sm86"))
    onnx.save(one_layer(Layer("conv2d", FP16), half=True), source)
    for wrong in ("sm87", "current", "8.6"):
        with pytest.raises(UserError, match="sm75, sm80, sm86, sm89, sm120, sm121"):
            build_plan(source, plan, "tensorrt-rtx", wrong)
    assert not plan.parent.exists()
    assert isinstance(build_plan(source, plan, "tensorrt-rtx", "sm86"), Built)


def test_a_missing_runtime_says_what_to_install(monkeypatch):
    for name, extra in RUNTIMES.items():
        monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)  # import then raises ModuleNotFoundError
        with pytest.raises(UserError, match=rf"{name} is not installed.*pip install 'smpq\[{extra}\]'"):
            load(name)
    with pytest.raises(UserError, match="tensorrt-rtx, tensorrt"):
        load("openvino")


@needs_rtx
def test_running_needs_a_gpu_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "DRIVER_LIBRARY", "libcuda_of_no_machine.so.1")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(UserError, match="install the driver"):
        gpu_sm()
    plan = tmp_path / "model.plan"
    with pytest.raises(UserError, match="build it with smpq build"):
        open_plan(plan, "tensorrt-rtx", {})
    plan.write_bytes(b"")
    with pytest.raises(UserError, match="Copy the run to a machine with a GPU"):
        open_plan(plan, "tensorrt-rtx", {})


@needs_rtx
def test_nothing_is_built_twice(tmp_path):
    cache = tmp_path / "cache"
    first = build(one_layer(Layer("conv2d", W8A8), half=True), tmp_path, cache=cache)
    again = build(one_layer(Layer("conv2d", W8A8), half=True), tmp_path, cache=cache)
    assert (first.row.from_cache, again.row.from_cache) == (False, True)
    assert replace(again, row=first.row) == first
    assert msgspec.structs.replace(again.row, from_cache=False) == first.row
    assert again.layers
    assert not list(cache.glob("timing-*"))  # TensorRT-RTX times no kernels
    for other in (
        build(one_layer(Layer("conv2d", W8A8), half=True), tmp_path, "sm89", cache=cache),
        build(one_layer(Layer("conv2d", FP16), half=True), tmp_path, cache=cache),
    ):
        assert not other.row.from_cache
    for kept in cache.glob("*.plan"):
        kept.write_bytes(b"cut off")
    assert not build(one_layer(Layer("conv2d", W8A8), half=True), tmp_path, cache=cache).row.from_cache
