"""Each target gets the graph that its runtime wants, and the graph computes what the plan says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from calib.errors import UserError
from calib.formats.format import Format
from deploy.backends import backend_of
from deploy.backends.onnxruntime import build_engine, load_engine, unit_kernels
from deploy.targets.offers import offer
from deploy.targets.target import target_from_name
from tests.deploy.networks import constants, export, mlp, nodes, relative_error, residual, run_plain


def _float_weights(path):
    """Number of float matrices and kernels that are left in the file."""
    return sum(array.dtype == np.float32 and array.ndim > 1 and array.size > 100 for array in constants(path).values())


def test_onnxruntime_gets_uint8_activations_int32_biases_and_gemms_for_rows(tmp_path):
    exported = residual()
    lowered = exported.lower(exported.formats("w8a8"), "ort-cpu", tmp_path)
    found, graph = constants(lowered.path), nodes(lowered.path)
    zero_points = [found[node.input[2]] for node in graph.values() if node.op_type == "QuantizeLinear"]
    assert {array.dtype for array in zero_points} == {np.dtype(np.uint8)}
    assert {name for name, node in graph.items() if node.op_type == "Gemm"} == {"head", "last"}
    assert {"sequence", "wide", "plain"} <= {name for name, node in graph.items() if node.op_type in {"Conv", "MatMul"}}
    assert found["stem/bias"].dtype == np.int32
    assert not _float_weights(lowered.path)
    assert lowered.report.changes["quantize_weights"] == len(exported.units) + 1


def test_tensorrt_gets_int8_with_zero_point_0_float_biases_half_and_a_fixed_batch(tmp_path):
    exported = residual()
    lowered = exported.lower(exported.formats("w8a8", "fp16"), "tensorrt-rtx", tmp_path, batch=4)
    model = onnx.load(str(lowered.path))
    found, graph = constants(lowered.path), nodes(lowered.path)
    zero_points = [
        found[node.input[2]] for node in graph.values() if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    assert {array.dtype for array in zero_points} == {np.dtype(np.int8)}
    assert not any(array.any() for array in zero_points)
    # an int32 bias behind a DequantizeLinear is a parse error there
    assert not any(array.dtype == np.int32 for array in found.values())
    assert {found[node.input[1]].dtype for node in graph.values() if node.op_type == "DequantizeLinear"} == {
        np.dtype(np.float16)
    }
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [4, 3, 8, 8]


def test_tensorrt_gets_int4_blocks_as_k_by_n(tmp_path):
    exported = mlp()
    lowered = exported.lower(exported.formats("w4a16b16"), "tensorrt-rtx", tmp_path)
    graph = nodes(lowered.path)
    for unit in exported.units:
        attributes = {attribute.name: attribute.i for attribute in graph[f"{unit.path}/weight/DQ"].attribute}
        assert (graph[unit.path].op_type, attributes) == ("MatMul", {"axis": 0, "block_size": 16})


@pytest.mark.parametrize("texts", [("w8a8",), ("w3a8",), ("w2a4",), ("w4a16",), ("w5a6", "fp32", "w4a8")])
@pytest.mark.parametrize("make", [residual, mlp])
def test_simulate_agrees_with_the_fake_quantised_model(tmp_path, make, texts):
    exported = make()
    lowered = exported.lower(exported.formats(*texts), "simulate", tmp_path)
    exact = run_plain(lowered.path, exported.batch, disable_quant_qdq="1")
    assert relative_error(exact, lowered.expected) < 2e-3
    assert (exact.argmax(1) == lowered.expected.argmax(1)).mean() >= 0.98
    # Anyone may open the file in a default session; integer kernels then round biases and blocks in their own way.
    assert relative_error(run_plain(lowered.path, exported.batch), lowered.expected) < 0.15


@pytest.mark.parametrize(
    "texts", [("w8a8",), ("w7a8",), ("w8a8", "fp32"), ("fp32", "w8a8", "fp32", "w8a8", "w8a8", "fp32", "w8a8")]
)
@pytest.mark.parametrize("make", [residual, mlp])
def test_the_engine_agrees_with_the_fake_quantised_model(tmp_path, make, texts):
    exported = make()
    lowered = exported.lower(exported.formats(*texts), "ort-cpu", tmp_path)
    engine = tmp_path / "engine.ort-cpu.onnx"
    build_engine(lowered.path, engine)
    (result,) = load_engine(engine).run((exported.batch.numpy(),))
    assert relative_error(result, lowered.expected) < 0.02
    assert (result.argmax(1) == lowered.expected.argmax(1)).mean() >= 0.95


def test_a_float_plan_changes_nothing(tmp_path):
    exported = residual()
    lowered = exported.lower(exported.formats("fp32"), "ort-cpu", tmp_path)
    assert not any(lowered.report.changes.values())
    np.testing.assert_allclose(run_plain(lowered.path, exported.batch), lowered.expected, atol=1e-5)


def test_the_report_is_a_file_of_the_policy(tmp_path):
    exported = residual()
    record = exported.lower(exported.formats("w8a8"), "ort-cpu", tmp_path).report.to_file("a policy", "ort-cpu")
    assert (record.policy, record.target) == ("a policy", "ort-cpu")
    assert record.size_bytes == (tmp_path / "model.ort-cpu.onnx").stat().st_size


def test_a_missing_float_model_is_a_user_error(tmp_path):
    exported = mlp()
    plan, _ = exported.plan(exported.formats("fp32"), "ort-cpu")
    with pytest.raises(UserError, match="does not exist"):
        backend_of(target_from_name("ort-cpu")).lower(tmp_path / "no.onnx", plan, exported.units, tmp_path / "out.onnx")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.own = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(torch.relu(self.shared(torch.relu(self.shared(x)))))


def test_the_table_says_what_becomes_of_blocks_that_several_calls_multiply_by(tmp_path):
    exported = export(Twice(), torch.randn(4, 5, 64), tmp_path)
    blocks, target = Format.from_text("w4a16b32"), target_from_name("ort-cpu")
    lowered = exported.lower({unit.path: blocks for unit in exported.units}, "ort-cpu", tmp_path)
    build_engine(lowered.path, tmp_path / "engine.onnx")
    kernels = unit_kernels(tmp_path / "engine.onnx", exported.units)
    assert kernels == {"shared": "MatMul + DequantizeLinear", "own": "MatMulNBits"}
    assert {unit.path: offer(target, unit, blocks).status for unit in exported.units} == {
        "shared": "dequantized",
        "own": "native",
    }


@pytest.mark.parametrize(("outputs", "status"), [(64, "native"), (66, "refused"), (5, "refused")])
def test_the_table_says_where_blocks_of_two_bits_compute_something_else(tmp_path, outputs, status):
    torch.manual_seed(0)
    exported = export(nn.Sequential(nn.Linear(64, outputs)), torch.randn(4, 5, 64), tmp_path)
    blocks = Format.from_text("w2a16b64")
    assert offer(target_from_name("ort-cpu"), exported.units[0], blocks).status == status
    lowered = exported.lower({"0": blocks}, "ort-cpu", tmp_path)
    errors = {}
    for exact in (True, False):
        build_engine(lowered.path, tmp_path / "engine.onnx", exact=exact)
        (result,) = load_engine(tmp_path / "engine.onnx").run((exported.batch.numpy(),))
        errors[exact] = relative_error(result, lowered.expected)
    assert errors[True] < 1e-5
    assert (errors[False] < 0.05) == (status == "native")
