"""Which kernel each layer becomes, and the check of a policy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from calib.formats.format import FP16, Format
from deploy.backends.tensorrt import Built, check_units, kernels_from_log
from deploy.devices import messages
from tests.deploy.backends.builds import W4, W4B32, W8, W8A8, build, build_layer, needs_rtx
from tests.deploy.backends.graphs import CHANNELS, Graph, Layer, add_layer


def mixed_network(*, half: bool = True) -> onnx.ModelProto:
    """Two residual blocks with names that need care: a repeat, a comma, brackets; the skip input of the first add is
    quantised.
    """
    graph = Graph(TensorProto.FLOAT16 if half else TensorProto.FLOAT)
    first = add_layer(graph, Layer("conv2d", W8A8, name="block.0.conv1", relu=True), "x")
    second = add_layer(graph, Layer("conv2d", W8A8, name="block.0.conv2"), first)
    skip = graph.quantize_pair("block.0/skip", "x", np.asarray(0, np.int8))
    added = graph.node("Add", "block.0/add", [second, skip])
    third = add_layer(graph, Layer("conv2d", FP16, name="block.1.[a, b] {c}", relu=True), added)
    fourth = add_layer(graph, Layer("depthwise_conv2d", W8A8, name="block.1.conv#2"), third)
    output = graph.node("Add", "block.1/add", [fourth, added])
    return graph.model({"x": (2, CHANNELS, 8, 8)}, [output])


MIXED_PLAN = {"block.0.conv1": W8A8, "block.0.conv2": W8A8, "block.1.[a, b] {c}": FP16, "block.1.conv#2": W8A8}


@needs_rtx
@pytest.mark.parametrize("compute_capability", ["sm86", "sm89", "sm120", None])
def test_a_mixed_network_is_what_was_planned(compute_capability, tmp_path):
    record = build(mixed_network(), tmp_path, compute_capability)
    assert isinstance(record, Built), record
    checks = check_units(record.layers, MIXED_PLAN)
    assert [check.path for check in checks] == list(MIXED_PLAN)
    assert [check.found for check in checks] == ["int8", "int8", "fp16", "int8"]
    assert all(check.agrees for check in checks)
    assert all(check.kernel.startswith("correlation") for check in checks)


@needs_rtx
def test_a_policy_that_the_engine_does_not_follow_is_found_out(tmp_path):
    record = build(mixed_network(), tmp_path)
    swapped = {"block.0.conv1": FP16, "block.1.[a, b] {c}": W8A8, "block.0.conv2": W4, "elsewhere": W8A8}
    checks = check_units(record.layers, swapped)
    assert [check.found for check in checks] == ["int8", "fp16", "int8", "missing"]
    assert not any(check.agrees for check in checks)
    assert checks[-1].kernel == ""


def linear_network(formats: dict[str, Format], rows: int, size: int = 256) -> onnx.ModelProto:
    graph, tensor = Graph(TensorProto.FLOAT16), "x"
    for name, format_ in formats.items():
        tensor = add_layer(
            graph, Layer("linear", format_, name=name, in_features=size, out_features=size, relu=True), tensor
        )
    return graph.model({"x": (rows, size)}, [tensor])


@needs_rtx
@pytest.mark.parametrize("rows", [1, 8])
def test_a_multilayer_perceptron_mixes_all_formats(rows, tmp_path):
    # With one row some products are generated code that also holds the epilogue of the layer before.
    formats = {"fc1": W8A8, "fc2": FP16, "fc3": W4B32, "fc4": W8, "fc5": FP16}
    record = build(linear_network(formats, rows), tmp_path)
    checks = check_units(record.layers, formats)
    assert [check.found for check in checks] == ["int8", "fp16", "int4-weight-only", "int8-weight-only", "fp16"]
    assert all(check.agrees for check in checks)


@needs_rtx
def test_one_row_of_input_dequantises_eight_bit_weights(tmp_path):
    formats = {"fc": W8}
    (several,) = check_units(build(linear_network(formats, 2, 512), tmp_path).layers, formats)
    (single,) = check_units(build(linear_network(formats, 1, 512), tmp_path).layers, formats)
    assert (several.found, single.found) == ("int8-weight-only", "dequantized")
    assert single.agrees  # the bytes are as planned


@needs_rtx
@pytest.mark.parametrize(("formats", "found"), [
    ((W8A8, W8A8, W8A8), ["int8"] * 3), ((FP16, FP16, FP16), ["fp16"] * 3),
    ((W8A8, FP16, W4B32), ["int8", "fp16", "int4-weight-only"]),
])  # fmt: skip
def test_products_that_share_their_input_may_become_one_kernel(formats, found, tmp_path):
    graph = Graph(TensorProto.FLOAT16)
    paths = dict(zip(("q", "k", "v"), formats, strict=True))
    query, key, value = (
        add_layer(graph, Layer("linear_nd", format_, name=name), "x") for name, format_ in paths.items()
    )
    output = graph.node("Add", "second", [graph.node("Add", "first", [query, key]), value])
    checks = check_units(build(graph.model({"x": (2, 8, 256)}, [output]), tmp_path).layers, paths)
    assert [check.found for check in checks] == found
    assert all(check.agrees for check in checks)


@needs_rtx
def test_depthwise_pads_every_group_to_four_channels(tmp_path):
    record = build_layer(Layer("depthwise_conv2d", W8A8), tmp_path)
    (product,) = [kernel for kernel in record.layers if kernel.kind == "correlation"]
    assert (CHANNELS, 4, 3, 3) in [constant.shape for constant in product.constants]


def tensor(name: str, dtype: str, *shape: int) -> messages.Tensor:
    return messages.Tensor(name=name, dtype=dtype, shape=shape)


def half(name: str, *shape: int) -> messages.Tensor:
    return tensor(name, "Half", *shape)


def kernel(kind, inputs, constants, outputs, nodes, name="") -> messages.Layer:
    return messages.Layer(kind=kind, inputs=inputs, constants=constants, outputs=outputs, onnx_nodes=nodes, name=name)


def test_check_without_a_builder():
    """The rules of the check, on kernels written down by hand."""
    weight = tensor("w", "Int4", 64, 64)
    kernels = [
        kernel("kgen", (), (half("s", 1, 64), weight), (half("unpacked", 64, 64),), ("a/DQw",)),
        kernel("kgen", (half("unpacked", 64, 64),), (), (half("turned", 64, 64),), ()),
        kernel("gemm", (half("x", 8, 64), half("turned", 64, 64)), (), (half("y", 8, 64),), ("a",), "product"),
        kernel("runtime_fusion", (half("y", 8, 64),), (weight, half("s", 2, 64)), (half("z", 8, 64),), ("b", "b/DQw")),
        kernel("kgen", (half("z", 8, 64),), (half("s", 1, 64),), (half("out", 8, 64),), ("b", "a")),
        kernel("gemm", (tensor("f", "Float", 8, 64),), (tensor("g", "Float", 64, 64),), (), ("c",)),
    ]
    cases = {
        ("a", "w4a16"): ("dequantized", True), ("a", "w4a16b32"): ("dequantized", False),
        ("a", "w8a16"): ("dequantized", False), ("b", "w4a16b32"): ("int4-weight-only", True),
        ("b", "w4a16"): ("int4-weight-only", True), ("b", "w8a16"): ("int4-weight-only", False),
        ("b", "w4a8"): ("int4-weight-only", False), ("b", "w3a16"): ("int4-weight-only", False),
        ("c", "fp32"): ("fp32", True), ("c", "fp16"): ("fp32", False), ("d", "fp32"): ("missing", False),
    }  # fmt: skip
    for (path, text), expected in cases.items():
        (check,) = check_units(kernels, {path: Format.from_text(text)})
        assert (check.found, check.agrees) == expected, (path, text)
    assert check_units(kernels, {"a": W4})[0].kernel == "gemm product"


def test_kernels_are_read_from_the_log():
    tensor = (
        "{ Name: a, [b] {c}, Dimensions: [2,-1], Strides: [4,1], Datatype: Half, "
        "Format: (Linear) Row major linear format }"
    )
    line = (
        f"Name: x, y_myl0, LayerType: gemm, Inputs: [ {tensor}, {tensor}], Constants: [], Outputs: [ {tensor}], "
        "TacticName: t, "
        "StreamId: 0, Metadata: [ONNX Layer: one, [two]]\x1f[ONNX Layer: three]\x1e[ONNX Layer: four]"
    )
    wait = (
        "Name: w, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, EventId: 1, "
        "Metadata: "
    )
    product, pause = kernels_from_log(["other", f"Layers:\n{line}\n{wait}\n\nI/O Tensors:\n Name: z"])
    assert product.onnx_nodes == ("one, [two]", "three", "four")
    assert (product.name, product.kind) == ("x, y_myl0", "gemm")
    assert product.inputs == (half("a, [b] {c}", 2, -1),) * 2
    assert product.constants == ()
    assert pause.kind == "wait"
    assert kernels_from_log(["nothing here"]) == ()
    with pytest.raises(ValueError, match="unknown kernel description"):
        kernels_from_log(["Layers:\nsomething new"])


@needs_rtx
@pytest.mark.parametrize("rows", [1, 8])
def test_a_gemm_with_a_transposed_weight(rows, tmp_path):
    """What a Linear on 2-D input is exported as; its blocks run along the second axis."""
    for axis, scales, found in ((0, (10,), "dequantized"), (1, (10, 8), "int4-weight-only")):
        graph = Graph(TensorProto.FLOAT16)
        names = [
            graph.constant("weight", np.ones((10, 256)).astype(ml_dtypes.int4)),
            graph.scale("scale", np.full(scales, 0.01)),
            graph.constant("zero_point", np.zeros(scales).astype(ml_dtypes.int4)),
        ]
        blocks = {"block_size": 32} if axis else {}
        weight = graph.node("DequantizeLinear", "unit/DQw", names, axis=axis, **blocks)
        output = graph.node("Gemm", "unit", ["x", weight, graph.scale("bias", np.zeros(10))], transB=1)
        record = build(graph.model({"x": (rows, 256)}, [output]), tmp_path)
        (check,) = check_units(record.layers, {"unit": W4B32 if axis else W4})
        # a single row goes through generated code, which reads the four bits itself
        assert check.found == ("int4-weight-only" if rows == 1 else found)
        assert check.agrees
