"""Embeddings and tied heads: one set of integers, the operators that ONNX Runtime runs, the values of the plan."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from calib.formats.format import FP32, Format
from deploy.backends.onnxruntime import build_engine, load_engine, unit_kernels
from deploy.lowering.onnx_files import size_bytes
from smpq.problem.costs import weight_bytes
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from tests.deploy.networks import Exported, export, nodes, relative_error
from tests.scratch import scratch

ROWS = 300  # so many that the exporter does not transpose the weight of a tied head itself


class Words(nn.Module):
    def __init__(self, width: int, *, tied: bool, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.table, self.middle = nn.Embedding(ROWS, width), nn.Linear(width, width)
        self.head = nn.Linear(width, ROWS)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, words):
        words = self.table(words)
        return self.head(torch.tanh(self.middle(words.mean(1) if self.flat else words)))


@functools.cache
def words(width: int, *, tied: bool, flat: bool = False) -> Exported:
    torch.manual_seed(0)
    batch = torch.randint(0, ROWS, (4, 5))
    return export(Words(width, tied=tied, flat=flat), batch, scratch())


def formats(exported: Exported, text: str) -> dict[str, Format]:
    return {unit.path: Format.from_text(text) if unit.gathers else FP32 for unit in exported.units}


def run(path: Path, exported: Exported, *, exact: bool):
    build_engine(path, path.with_suffix(".engine.onnx"), exact=exact)
    return load_engine(path.with_suffix(".engine.onnx")).run([exported.batch.numpy()])[0]


CASES = [(64, "w4a16b32"), (64, "w8a16b64"), (64, "w4a16"), (23, "w4a16"), (23, "w8a16")]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("width", "text"), CASES)
def test_the_engine_agrees_with_the_fake_quantised_model(tmp_path, width, text, tied):
    exported = words(width, tied=tied)
    lowered = exported.lower(formats(exported, text), "ort-cpu", tmp_path)
    found = run(lowered.path, exported, exact=False)
    # a head quantises its input inside the kernel, to 8 bits for each block
    assert relative_error(found, lowered.expected) < (1e-2 if tied else 1e-5)
    kernels = unit_kernels(tmp_path / "model.ort-cpu.engine.onnx", exported.units[:1])
    assert "GatherBlockQuantized" in kernels["table"]
    # as it is written, the input is float
    assert relative_error(run(lowered.path, exported, exact=True), lowered.expected) < 1e-4


@pytest.mark.parametrize("text", ["w2a8", "w4a16", "w8a16b32", "wz2a16b32", "wm2.5a16b32"])
@pytest.mark.parametrize("tied", [False, True])
def test_in_standard_onnx_one_weight_is_dequantised_for_all(tmp_path, text, tied):
    exported = words(64, tied=tied)
    lowered = exported.lower(formats(exported, text), "simulate", tmp_path)
    assert relative_error(run(lowered.path, exported, exact=True), lowered.expected) < 1e-3
    operators = [node.op_type for name, node in nodes(lowered.path).items() if name.startswith("table/weight")]
    assert operators.count("DequantizeLinear") == 1


@pytest.mark.parametrize(("width", "text"), CASES)
def test_a_tied_weight_is_stored_once_and_costs_what_is_said(tmp_path, width, text):
    exported = words(width, tied=True)
    lowered = exported.lower(formats(exported, text), "ort-cpu", tmp_path)
    table = exported.units[0]
    stored = [array for array in onnx.load(lowered.path).graph.initializer if array.name.startswith("table/weight")]
    zero_points = [array for array in stored if "zero_point" in array.name]  # one for each row, of a scale for each row
    found = sum(len(array.raw_data) for array in stored if array not in zero_points and "shape" not in array.name)
    assert found == weight_bytes(table, Format.from_text(text))
    assert lowered.report.size_bytes < size_bytes(exported.path)
    assert not any(
        array.data_type == onnx.TensorProto.FLOAT and list(array.dims) in ([ROWS, width], [width, ROWS])
        for array in onnx.load(lowered.path).graph.initializer
    )


@pytest.mark.parametrize(("target", "text"), [("simulate", "w8a8"), ("simulate", "w4a16"), ("ort-cpu", "w4a16b16")])
@pytest.mark.parametrize("width", [16, 64])  # the exporter transposes the smaller weight itself
def test_a_tied_head_on_rows_of_a_matrix(tmp_path, target, text, width):
    exported = words(width, tied=True, flat=True)
    lowered = exported.lower(formats(exported, text), target, tmp_path)
    found = run(lowered.path, exported, exact=target == "simulate")
    assert relative_error(found, lowered.expected) < (1e-3 if target == "simulate" else 1e-2)


def test_the_kernels_of_a_tied_head_are_both_named(tmp_path):
    exported = words(64, tied=True)
    for text in ("w4a16b32", "w4a16"):
        lowered = exported.lower(formats(exported, text), "ort-cpu", tmp_path)
        run(lowered.path, exported, exact=False)
        kernels = unit_kernels(tmp_path / "model.ort-cpu.engine.onnx", exported.units[:1])
        assert set(kernels["table"].split(", ")) == {"GatherBlockQuantized", "MatMulNBits"}


def test_rows_are_rounded_to_nearest_where_nothing_multiplies_by_them():
    exported = words(64, tied=False)
    chosen = Format.from_text("w8a16")
    plan, _ = exported.plan({**formats(exported, "w8a16")}, "ort-cpu")
    weight = exported.traced.state[exported.units[0].weight]
    step = plan.weights["table"].scale[:, None]
    inside = (weight / step).abs() <= chosen.weight.limits[1]
    assert bool(((plan.weights["table"].dequantize() - weight).abs() <= step * 0.5001)[inside].all())


def test_a_policy_with_an_embedding_round_trips():
    exported = words(64, tied=True)
    groups = find_groups(exported.traced, exported.units)
    assert [len(group.units) for group in groups] == [1, 1]
    space = Space(groups, {group.name: (Format.from_text("w4a16b32"), FP32) for group in groups}, FP32)
    policy = Policy({"table": Format.from_text("w4a16b32"), "middle": FP32})
    assert Policy.from_file(policy.to_file(groups), space) == policy
    assert space.group_of("head").name == "table"


def test_a_float_embedding_is_left_alone(tmp_path):
    exported = words(64, tied=True)
    lowered = exported.lower(dict.fromkeys(formats(exported, "w8a16"), FP32), "ort-cpu", tmp_path)
    assert lowered.report.changes["quantize_rows"] == 0
    assert np.allclose(run(lowered.path, exported, exact=False), lowered.expected, atol=1e-4)
