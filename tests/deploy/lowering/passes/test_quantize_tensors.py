"""Quantise-dequantise pairs: where, with which type, shared by whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.errors import UserError
from calib.formats.integers import integer
from calib.formats.quantizers import ActivationQuantizer
from calib.network.execution import Edits
from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.quantize_tensors import quantize_tensors
from smpq.quantized.plan import QuantizedTensor, QuantPlan
from tests.deploy.networks import constants, export, mlp, nodes, relative_error, residual, run_plain

AFFINE = ActivationQuantizer(integer(8), 0.05, 100, signed=False)
SYMMETRIC = ActivationQuantizer(integer(8), 0.05, 0, signed=True)


def _plan(exported, *tensors):
    return QuantPlan(exported.formats("fp32"), tensors, {})


def _insert(exported, path, *tensors):
    model = exported.model()
    result = quantize_tensors(model, _plan(exported, *tensors), exported.units)
    save_model(model, path)
    return result


@pytest.mark.parametrize(("quantizer", "kind"), [(AFFINE, np.uint8), (SYMMETRIC, np.int8)])
def test_types_and_explicit_zero_points(tmp_path, quantizer, kind):
    exported = residual()
    path = tmp_path / "model.onnx"
    assert _insert(exported, path, QuantizedTensor("x", quantizer, (exported.units[0].calls[0],))).inserted == 1
    found, graph = constants(path), nodes(path)
    assert found["x/zero_point"] == quantizer.zero_point
    assert found["x/zero_point"].dtype == kind
    assert list(graph["x/Q"].input) == ["x", "x/scale", "x/zero_point"]
    assert graph["stem"].input[0] == graph["x/DQ"].output[0]


def test_fewer_bits_are_clipped_to_their_range(tmp_path):
    exported = residual()
    path = tmp_path / "model.onnx"
    quantizer = ActivationQuantizer(integer(4), 0.3, 7, signed=False)
    _insert(exported, path, QuantizedTensor("x", quantizer, (exported.units[0].calls[0],)))
    found, graph = constants(path), nodes(path)
    assert (found["x/low"], found["x/high"]) == tuple(np.float32(limit) for limit in quantizer.real_limits)
    assert graph["x/Q"].input[0] == graph["x/Clip"].output[0]
    edits = Edits(edges={("x", exported.units[0].calls[0]): quantizer})
    expected = exported.traced.run((exported.batch,), edits).numpy()
    np.testing.assert_allclose(run_plain(path, exported.batch, disable_quant_qdq="1"), expected, atol=1e-4)


def test_one_pair_for_equal_quantisers_and_two_for_different_ones(tmp_path):
    exported = residual()
    wide, plain = (next(unit for unit in exported.units if unit.path == path) for path in ("wide", "plain"))
    tensor = wide.inputs[0]
    assert tensor == plain.inputs[0]
    same = [QuantizedTensor(tensor, AFFINE, (unit.calls[0],)) for unit in (wide, plain)]
    assert _insert(exported, tmp_path / "model.onnx", *same).inserted == 1
    other = [same[0], replace(same[1], quantizer=replace(AFFINE, type=integer(6)))]
    assert _insert(exported, tmp_path / "model.onnx", *other).inserted == 2
    graph = nodes(tmp_path / "model.onnx")
    assert graph["wide"].input[0] != graph["plain"].input[0]


def test_at_the_source_all_consumers_and_the_caller_see_the_rounded_tensor(tmp_path):
    exported = mlp()
    output = exported.units[-1].calls[0]
    path = tmp_path / "model.onnx"
    assert _insert(exported, path, QuantizedTensor(output, AFFINE)).inserted == 1
    expected = exported.traced.run((exported.batch,), Edits(sources={output: AFFINE})).numpy()
    np.testing.assert_allclose(run_plain(path, exported.batch, disable_quant_qdq="1"), expected, atol=1e-5)
    # the caller still finds the output under its name
    assert [value.name for value in exported.model().graph.outputs] == [output]


def test_named_consumers_leave_the_others_in_float(tmp_path):
    exported = residual()
    total = next(node for node in exported.traced.graph.nodes if "add" in str(node.target))
    convolution, skip = total.all_input_nodes
    path = tmp_path / "model.onnx"
    _insert(exported, path, QuantizedTensor(skip.name, AFFINE, (total.name,)))
    maker = next(node for node in nodes(path).values() if total.name in node.output)
    assert list(maker.input) == [convolution.name, f"{skip.name}/DQ"]
    assert nodes(path)["a"].input[0] == skip.name


def test_a_no_op_that_was_exported_away_needs_no_pair_of_its_own(tmp_path):
    exported = residual()
    clone = next(node for node in exported.traced.graph.nodes if "clone" in str(node.target))
    source = clone.all_input_nodes[0].name
    result = _insert(
        exported, tmp_path / "model.onnx", QuantizedTensor(source, AFFINE), QuantizedTensor(clone.name, AFFINE)
    )
    assert (result.inserted, result.merged) == (1, (clone.name,))
    with pytest.raises(UserError, match="quantises them differently"):
        _insert(
            exported, tmp_path / "model.onnx", QuantizedTensor(source, AFFINE), QuantizedTensor(clone.name, SYMMETRIC)
        )


def test_the_consumer_of_a_no_op_that_was_exported_away_is_found(tmp_path):
    exported = residual()
    twice = next(unit for unit in exported.units if unit.path == "twice")
    result = _insert(exported, tmp_path / "model.onnx", QuantizedTensor(twice.inputs[1], AFFINE, (twice.calls[1],)))
    assert (result.inserted, result.merged) == (1, ())
    graph = nodes(tmp_path / "model.onnx")
    assert graph["twice#2"].input[0].endswith("/DQ")
    assert not graph["twice"].input[0].endswith("/DQ")


def test_whole_network_agrees_with_the_edited_trace(tmp_path):
    exported = residual()
    plan, quantizer = exported.plan(exported.formats("w8a8"), "ort-cpu")
    model = exported.model()
    quantize_tensors(model, plan, exported.units)
    save_model(model, tmp_path / "model.onnx")
    edits = quantizer.edits(plan)
    expected = exported.traced.run((exported.batch,), Edits(edits.sources, edits.edges)).numpy()
    assert relative_error(run_plain(tmp_path / "model.onnx", exported.batch, disable_quant_qdq="1"), expected) < 1e-3


class Clips(nn.Module):
    def __init__(self, clip):
        super().__init__()
        self.a, self.b, self.clip = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), clip

    def forward(self, x):
        return self.b(self.clip(self.a(x)))


@pytest.mark.parametrize(
    "clip",
    [
        lambda x: F.relu(x).clamp(max=0.5),
        lambda x: F.relu(F.relu(x)),
        lambda x: F.relu6(x).clamp(-1.0, 0.5),
        lambda x: F.relu(x).clamp(0.1, 0.5),
    ],
)
def test_clips_that_the_exporter_joins_lose_no_pair(clip, tmp_path):
    torch.manual_seed(0)
    exported = export(Clips(clip), torch.randn(8, 3, 8, 8), tmp_path)
    made = exported.lower(exported.formats("w8a8"), "ort-cpu", tmp_path)
    assert not made.report.merged_tensors
    result = run_plain(made.path, exported.batch, disable_quant_qdq="1")
    assert relative_error(result, made.expected) < 1e-3
