import onnx
import pytest
import torch
from torch import nn

from deploy.lowering.passes.declare_opset import declare_opset
from tests.deploy.networks import export, mlp, residual


@pytest.mark.parametrize(
    ("make", "text", "opset"),
    [(residual, "w8a8", 20), (residual, "fp16", 20), (mlp, "w8a16", 20), (mlp, "w4a16b32", 21), (mlp, "w4a16", 21)],
)
def test_what_needs_no_4_bits_is_declared_older_and_still_legal(make, text, opset, tmp_path):
    exported = make()
    lowered = exported.lower(exported.formats(text), "tensorrt-rtx", tmp_path)
    model = onnx.load(str(lowered.path))
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
    onnx.checker.check_model(model, full_check=True)


def test_another_opset_is_left_alone():
    model = residual().model()
    model.graph.opset_imports[""] = 18
    assert not declare_opset(model)
    assert model.graph.opset_imports[""] == 18


def test_an_operator_that_means_something_else_since_keeps_its_opset(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU())
    exported = export(network, torch.randn(2, 3, 6, 6), tmp_path)
    lowered = exported.lower(exported.formats("fp16"), "tensorrt-rtx", tmp_path)
    model = onnx.load(str(lowered.path))
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 21
    onnx.checker.check_model(model, full_check=True)
