"""The inspector's JSON in the two ways TensorRT writes it, made up after published examples."""

from __future__ import annotations

import json

import msgspec
import pytest

from calib.formats.format import Format
from deploy.backends.tensorrt import check_units
from deploy.devices.messages import Layer
from deploy.runner.trt_layers import layers_from_inspector, nodes_from_metadata, trt_type_name

TENSORRT_10 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv1 + relu1",
            "LayerType": "Reformat",
            "Inputs": [
                {
                    "Name": "x",
                    "Location": "Device",
                    "Dimensions": [1, 3, 32, 32],
                    "Format/Datatype": "Row major linear FP32",
                }
            ],
            "Outputs": [
                {
                    "Name": "x8",
                    "Location": "Device",
                    "Dimensions": [1, 3, 32, 32],
                    "Format/Datatype": "Row major Int8 format",
                }
            ],
            "ParameterType": "Reformat",
            "Metadata": "",
        },
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {
                    "Name": "x8",
                    "Dimensions": [1, 3, 32, 32],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
                }
            ],
            "Outputs": [
                {
                    "Name": "h",
                    "Dimensions": [1, 16, 32, 32],
                    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
                }
            ],
            "Weights": {"Type": "Int8", "Count": 432},
            "Bias": {"Type": "Float", "Count": 16},
            "Metadata": "[ONNX Layer: layer1.0.conv1]\x1e[ONNX Layer: relu1]",
        },
        {
            "Name": "conv2",
            "LayerType": "CaskGemmConvolution",
            "Inputs": [{"Name": "h", "Dimensions": [1, 16, 32, 32], "Format/Datatype": "Half"}],
            "Outputs": [
                {"Name": "y", "Dimensions": [1, 16, 32, 32], "Format/Datatype": "Row major linear FP16 format"}
            ],
            "Weights": {"Type": "Half", "Count": 256},
            "Metadata": "[ONNX Layer: conv2]",
        },
    ],
    "Bindings": ["x", "y"],
}
TENSORRT_11 = {
    "Layers": [
        {
            "Name": "fused_myl0_3",
            "LayerType": "runtime_fusion",
            "Inputs": [{"Name": "a", "Dimensions": [8, 256], "Strides": [256, 1], "Datatype": "Half",
                        "Format": "(Linear) Row major"}],
            "Constants": [{"Name": "w", "Dimensions": [256, 256], "Datatype": "Int4"},
                          {"Name": "s", "Dimensions": [8, 256], "Datatype": "Half"}],
            "Outputs": [{"Name": "b", "Dimensions": [8, 256], "Datatype": "Half"}],
            "TacticName": "fused",
            "Metadata": "[ONNX Layer: fc]\x1f[ONNX Layer: fc/DQw]",
        }
    ],
    "I/O Tensors": [],
}  # fmt: skip


def test_tensorrt_10_writes_type_and_layout_in_one_text():
    reformat, first, second = layers_from_inspector(json.dumps(TENSORRT_10))
    assert reformat["onnx_nodes"] == []
    assert [reformat[key][0]["dtype"] for key in ("inputs", "outputs")] == ["Float", "Int8"]
    assert first["onnx_nodes"] == ["layer1.0.conv1", "relu1"]
    assert first["constants"] == [{"name": "weights", "dtype": "Int8", "shape": [432]}]
    assert [first[key][0]["dtype"] for key in ("inputs", "outputs")] == ["Int8", "Half"]
    assert first["outputs"][0]["shape"] == [1, 16, 32, 32]
    assert second["inputs"][0]["dtype"] == second["outputs"][0]["dtype"] == "Half"


def test_tensorrt_11_writes_them_apart():
    (layer,) = layers_from_inspector(json.dumps(TENSORRT_11))
    assert (layer["kind"], layer["name"], layer["onnx_nodes"]) == ("runtime_fusion", "fused_myl0_3", ["fc", "fc/DQw"])
    assert [constant["dtype"] for constant in layer["constants"]] == ["Int4", "Half"]
    assert layer["constants"][0]["shape"] == [256, 256]


def test_the_policy_is_checked_against_the_inspectors_layers_too():
    layers = [*layers_from_inspector(json.dumps(TENSORRT_10)), *layers_from_inspector(json.dumps(TENSORRT_11))]
    planned = {
        "layer1.0.conv1": Format.from_text("w8a8"),
        "conv2": Format.from_text("fp16"),
        "fc": Format.from_text("w4a16b32"),
    }
    checks = check_units(msgspec.convert(layers, list[Layer]), planned)
    assert [check.found for check in checks] == ["int8", "fp16", "int4-weight-only"]
    assert all(check.agrees for check in checks)
    (wrong,) = check_units(msgspec.convert(layers, list[Layer]), {"conv2": Format.from_text("w8a8")})
    assert not wrong.agrees


def convolution(read: str, written: str, weights: str) -> dict:
    """A convolution as in NVIDIA/TensorRT issues 3737 and 4020, with the layouts of its tensors."""
    tensors = [
        {"Name": name, "Location": "Device", "Dimensions": [1, 128, 40, 40], "Format/Datatype": layout}
        for name, layout in (("before", read), ("after", written))
    ]
    return {
        "Name": "/cv2/conv/Conv + /cv2/act/Relu",
        "LayerType": "CaskConvolution",
        "Inputs": tensors[:1],
        "Outputs": tensors[1:],
        "ParameterType": "Convolution",
        "Kernel": [3, 3],
        "Groups": 1,
        "Weights": {"Type": weights, "Count": 165888},
        "Bias": {"Type": "Float", "Count": 144},
        "Activation": "RELU",
        "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: cv2]\x1e[ONNX Layer: relu]",
    }


# Layouts as TREx, NVIDIA's engine explorer, lists them (tools/experimental/trt-engine-explorer in NVIDIA/TensorRT).
INT8_LAYOUTS = (
    "Int8", "Row major Int8 format", "Channel major Int8 format where channel % 4 == 0",
    "Channel major INT8 format where channel % 16 == 0",
    "Channel major INT8 format where channel == 4 and column stride % 32 == 0",
    "Row major INT8 format where column stride % 64 == 0", "Thirty-two wide channel vectorized row major Int8 format.",
    "Thirty-two wide channel vectorized row major Int8 format with 3 spatial dimensions",
)  # fmt: skip


@pytest.mark.parametrize("layout", INT8_LAYOUTS)
@pytest.mark.parametrize("weights", ["Int8", "INT8"])
def test_int8_is_read_in_every_layout(layout, weights):
    text = json.dumps({"Layers": [convolution(layout, "Channel major FP16 format where channel % 8 == 0", weights)]})
    (check,) = check_units(msgspec.convert(layers_from_inspector(text), list[Layer]), {"cv2": Format.from_text("w8a8")})
    assert (check.found, check.agrees) == ("int8", True)


@pytest.mark.parametrize(("layout", "weights", "found"), [
    ("Channel major FP16 format where channel % 8 == 0", "Half", "fp16"), ("Half", "FP16", "fp16"),
    ("Row major linear FP32", "Float", "fp32"), ("Row major linear BFloat16 format", "BFloat16", "bf16"),
    ("Row major linear BF16 format", "BF16", "bf16"),
    ("Two wide channel vectorized row major FP16 format", "INT8", "int8-weight-only"),
    ("Row major linear FP16 format", "INT4", "int4-weight-only"),
])  # fmt: skip
def test_other_types_in_both_spellings(layout, weights, found):
    text = json.dumps({"Layers": [convolution(layout, layout, weights)]})
    (check,) = check_units(msgspec.convert(layers_from_inspector(text), list[Layer]), {"cv2": Format.from_text("w8a8")})
    assert (check.found, check.agrees) == (found, False)


@pytest.mark.parametrize(("text", "name"), [
    ("Row major linear FP8 format", "FP8"), ("FP4", "FP4"), ("Row major linear Int64 format", "Int64"),
    ("Row major linear BOOL", "Bool"), ("Row major linear UInt8 format", "UInt8"), ("TF32", "TF32"),
    ("Double", "Double"), ("Unknown format", "Unknown format"),
])  # fmt: skip
def test_names_of_types(text, name):
    assert trt_type_name(text) == name


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["conv1", "conv2"]}', '{"Layers": [{"Name": "conv1"}]}'])
def test_anything_else_is_an_error(text):
    with pytest.raises(ValueError, match="unknown description of an engine's layers"):
        layers_from_inspector(text)


def test_metadata_of_other_frontends_names_no_onnx_nodes():
    assert nodes_from_metadata("") == ()
    assert nodes_from_metadata("[something else: a]\x1e[ONNX Layer: b, [c]]") == ("b, [c]",)
