"""Networks as users bring them: exported, lowered for each runtime, built; the numbers and the kernels are those of the
plan.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.network.fold import trace_folded
from calib.network.graph import TracedModel
from calib.network.units import Unit, find_units
from calib.task import Batch
from deploy.backends import backend_of, onnxruntime, tensorrt
from deploy.lowering.export import export_float
from deploy.targets.target import capability, target_from_name
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from tests.deploy.backends.builds import needs_rtx
from tests.deploy.brought import NETWORKS, VitBlock
from tests.deploy.networks import relative_error
from tests.scratch import scratch

BATCH = 32
POLICIES = {"int8": ("w8a8",), "mixed": ("w8a8", "w4a16b16", None)}
"""Format of one layer after the other; None is the target's float format, which also stands in where a format is not
native.
"""

every_network = pytest.mark.parametrize("name", NETWORKS)
every_policy = pytest.mark.parametrize("policy", POLICIES)


@dataclass(frozen=True)
class Brought:
    traced: TracedModel
    units: tuple[Unit, ...]
    path: Path
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Made:
    """A lowered file with its formats, and the outputs of the fake-quantised model."""

    path: Path
    formats: Mapping[str, Format]
    expected: list[npt.NDArray[np.float32]]


@functools.cache
def brought(name: str) -> Brought:
    make, shapes = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    inputs = tuple(torch.randn(BATCH, *shape) for shape in shapes)
    traced, _ = trace_folded(model, tuple(tensor[:2] for tensor in inputs))
    units, _ = find_units(traced)
    path = scratch() / "model.float.onnx"
    export_float(traced, units, path)
    return Brought(traced, units, path, inputs)


def made(network: Brought, policy: str, name: str, directory: Path, batch: int | None) -> Made:
    target = target_from_name(name)
    settings = CalibrationSettings("minmax", "nearest", target.activation_scheme)
    calibration = Calibration(network.traced, network.units, [Batch(network.inputs, None)], settings)
    rules = QdqRules(target.activation_scheme, target.quantize_outputs, target.quantize_skips, name == "ort-cpu")
    quantizer = FakeQuantizer(network.traced, network.units, calibration, rules)
    formats = {}
    for index, unit in enumerate(network.units):
        text = POLICIES[policy][index % len(POLICIES[policy])]
        chosen = target.reference if text is None else Format.from_text(text)
        native = capability(target, unit.operator, chosen, unit.in_features, unit.out_features).status == "native"
        formats[unit.path] = chosen if native else target.reference
    plan = quantizer.plan(formats)
    path = directory / "model.onnx"
    backend_of(target).lower(network.path, plan, network.units, path, batch)
    outputs = pytree.tree_leaves(network.traced.run(network.inputs, quantizer.edits(plan)))
    return Made(path, formats, [output.numpy() for output in outputs])


def assert_agree(results, expected):
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert relative_error(result, wanted) < 0.01
        assert (result.argmax(-1) == wanted.argmax(-1)).mean() > 0.95


def run_exactly(path: Path, inputs: tuple[Tensor, ...]):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options)
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))


def built(path: Path, **options) -> tensorrt.Built:
    record = tensorrt.build_plan(path, path.with_suffix(".plan"), "tensorrt-rtx", "sm86", **options)
    assert isinstance(record, tensorrt.Built), record
    return record


def fused_attentions(record: tensorrt.Built) -> int:
    """Kernels that hold a softmax and the two products around it."""
    kinds = [[node.rsplit("/", 1)[-1].split("_")[0] for node in kernel.onnx_nodes] for kernel in record.layers]
    return sum("Softmax" in names and names.count("MatMul") == 2 for names in kinds)


@every_network
@every_policy
def test_onnxruntime_engine_and_kernels(name, policy, tmp_path):
    network = brought(name)
    lowered = made(network, policy, "ort-cpu", tmp_path, 1)
    engine = tmp_path / "engine.onnx"
    assert isinstance(onnxruntime.build_engine(lowered.path, engine), onnxruntime.OrtEngineRecord)
    results = onnxruntime.load_engine(engine).run(tuple(tensor.numpy() for tensor in network.inputs))
    assert_agree(results, lowered.expected)
    checks = onnxruntime.check_units(onnxruntime.unit_kernels(engine, network.units), lowered.formats)
    assert [check for check in checks if not check.agrees] == []


@needs_rtx
@every_network
@pytest.mark.parametrize(("policy", "batch"), [("int8", None), ("mixed", BATCH)])
def test_tensorrt_file_and_kernels_with_a_fixed_and_a_free_batch(name, policy, batch, tmp_path):
    network = brought(name)
    lowered = made(network, policy, "tensorrt-rtx", tmp_path, batch)
    assert_agree(run_exactly(lowered.path, network.inputs), lowered.expected)
    record = built(lowered.path, **({} if batch else {"batch_sizes": (1, 8, BATCH)}))
    checks = tensorrt.check_units(record.layers, lowered.formats)
    assert [check for check in checks if not check.agrees] == []


@pytest.mark.parametrize("name", ["vit", "chunked-vit", "encoder", "cross-attention"])
@needs_rtx
@pytest.mark.parametrize("batch", [1, None])
def test_attention_stays_one_kernel_between_integer_layers(name, batch, tmp_path):
    lowered = made(brought(name), "int8", "tensorrt-rtx", tmp_path, batch)
    record = built(lowered.path, **({} if batch else {"batch_sizes": (1, 8, BATCH)}))
    softmaxes = sum(node.op_type == "Softmax" for node in onnx.load(str(lowered.path)).graph.node)
    assert softmaxes > 0
    assert fused_attentions(record) == softmaxes


@needs_rtx
def test_int4_blocks_behind_fused_attention_are_not_dequantised_on_every_run(tmp_path):
    network = brought("vit")
    target = target_from_name("tensorrt-rtx")
    calibration = Calibration(
        network.traced,
        network.units,
        [Batch(network.inputs, None)],
        CalibrationSettings("minmax", "nearest", "symmetric"),
    )
    formats = {unit.path: Format.from_text("w4a16b16" if unit.path == "proj" else "fp16") for unit in network.units}
    plan = FakeQuantizer(network.traced, network.units, calibration, QdqRules("symmetric")).plan(formats)
    backend_of(target).lower(network.path, plan, network.units, tmp_path / "model.onnx")
    record = built(tmp_path / "model.onnx")
    assert fused_attentions(record) == 1
    assert {check.path: check.found for check in tensorrt.check_units(record.layers, formats)}[
        "proj"
    ] == "int4-weight-only"


@needs_rtx
def test_a_max_pool_between_integer_convolutions_stays_integer(tmp_path):
    record = built(made(brought("pools"), "int8", "tensorrt-rtx", tmp_path, 1).path)
    pools = [kernel for kernel in record.layers if "MaxPool" in kernel.onnx_nodes]
    assert pools
    assert {tensor.dtype for kernel in pools for tensor in kernel.outputs} == {"Int8"}


@needs_rtx
def test_a_free_batch_without_batch_sizes_is_refused_in_words(tmp_path):
    lowered = made(brought("vit"), "int8", "tensorrt-rtx", tmp_path, None)
    outcome = tensorrt.build_plan(lowered.path, tmp_path / "model.plan", "tensorrt-rtx", "sm86")
    assert isinstance(outcome, tensorrt.BuildFailed)
    assert "give the sizes" in outcome.reason
    assert not (tmp_path / "model.plan").exists()


def test_a_layer_whose_weight_is_computed_is_reported(tmp_path):
    _, skipped = find_units(brought("cross-attention").traced)
    assert [(each.path, each.reason) for each in skipped] == [("attention", "its weight is computed inside the model")]


def test_the_free_batch_is_not_fixed_by_whoever_looks_at_the_graph():
    model = VitBlock().eval()
    traced = TracedModel(model, (torch.randn(2, 3, 16, 16),))
    units, _ = find_units(traced)
    assert units[1].macs == 17 * 64 * 192
    assert traced.nodes[units[1].calls[0]].meta["val"].shape[0].node.expr.free_symbols
