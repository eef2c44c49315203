"""The inspector's JSON in the two ways TensorRT writes it, made up after published examples."""

from __future__ import annotations

import json

import pytest

from calib.formats import Format
from deploy.backends.tensorrt import Kernel, check_units
from deploy.on_device.trt_layers import layers_from_inspector, nodes_from_metadata

TENSORRT_10 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv1 + relu1",
            "LayerType": "Reformat",
            "Inputs": [
                {"Name": "x", "Location": "Device", "Dimensions": [1, 3, 32, 32], "Format/Datatype": "Row major linear FP32"}
            ],
            "Outputs": [
                {"Name": "x8", "Location": "Device", "Dimensions": [1, 3, 32, 32], "Format/Datatype": "Row major Int8 format"}
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
                {"Name": "h", "Dimensions": [1, 16, 32, 32], "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}
            ],
            "Weights": {"Type": "Int8", "Count": 432},
            "Bias": {"Type": "Float", "Count": 16},
            "Metadata": "[ONNX Layer: layer1.0.conv1]\x1e[ONNX Layer: relu1]",
        },
        {
            "Name": "conv2",
            "LayerType": "CaskGemmConvolution",
            "Inputs": [{"Name": "h", "Dimensions": [1, 16, 32, 32], "Format/Datatype": "Half"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 16, 32, 32], "Format/Datatype": "Row major linear FP16 format"}],
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
            "Inputs": [{"Name": "a", "Dimensions": [8, 256], "Strides": [256, 1], "Datatype": "Half", "Format": "(Linear) Row major"}],
            "Constants": [{"Name": "w", "Dimensions": [256, 256], "Datatype": "Int4"}, {"Name": "s", "Dimensions": [8, 256], "Datatype": "Half"}],
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
    planned = {"layer1.0.conv1": Format(8, 8), "conv2": Format.from_text("fp16"), "fc": Format.from_text("w4a16b32")}
    checks = check_units([Kernel.from_json(layer) for layer in layers], planned)
    assert [check.found for check in checks] == ["int8", "fp16", "int4-weight-only"]
    assert all(check.agrees for check in checks)
    (wrong,) = check_units([Kernel.from_json(layer) for layer in layers], {"conv2": Format(8, 8)})
    assert not wrong.agrees


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["conv1", "conv2"]}', '{"Layers": [{"Name": "conv1"}]}'])
def test_anything_else_is_an_error(text):
    with pytest.raises(ValueError, match="unknown description of an engine's layers"):
        layers_from_inspector(text)


def test_metadata_of_other_frontends_names_no_onnx_nodes():
    assert nodes_from_metadata("") == ()
    assert nodes_from_metadata("[something else: a]\x1e[ONNX Layer: b, [c]]") == ("b, [c]",)
