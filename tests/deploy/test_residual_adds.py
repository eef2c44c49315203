"""Residual networks on TensorRT: each add reads one operand as integers, in the plan, in the file and in the
kernels.
"""

from __future__ import annotations

import functools
import pickle
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from calib.formats.format import FP32
from deploy.backends import backend_of, tensorrt
from deploy.run.workspace import rules_of
from deploy.targets.target import Target, target_from_name
from smpq.problem.groups import find_groups
from smpq.problem.joins import find_joins
from smpq.quantized.quantize import FakeQuantizer
from tests.deploy.backends.builds import needs_rtx
from tests.deploy.networks import Exported, calibration, export, relative_error, run_plain
from tests.deploy.residuals import NETWORKS
from tests.scratch import scratch

SCALE, BATCH = 4, 8
STAGES = {"resnet18": 2, "resnet50": 2, "mobilenetv2": 3, "efficientnet-b0": 3}

every_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def exported(name: str) -> tuple[Exported, int]:
    torch.manual_seed(0)
    model = NETWORKS[name](SCALE, STAGES[name])
    images = torch.randn(BATCH, 3, 32, 32)
    model.train()(images)
    return export(model, images, scratch()), model.adds


def quantizer_of(network: Exported, target: Target) -> FakeQuantizer:
    return FakeQuantizer(
        network.traced, network.units, calibration(network, target.activation_scheme), rules_of(target)
    )


def operands_quantized(path: Path) -> list[int]:
    """For each add of two computed tensors, how many of them come from a DequantizeLinear."""
    graph = onnx.load(str(path)).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    adds = [node for node in graph.node if node.op_type == "Add" and all(name in makers for name in node.input)]
    return [sum(makers[name] == "DequantizeLinear" for name in add.input) for add in adds]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
@every_network
def test_each_add_of_integer_layers_has_one_quantised_operand(name, target, tmp_path):
    (network, adds), described = exported(name), target_from_name(target, ["sm89"])
    plan = quantizer_of(network, described).plan(network.formats("w8a8"))
    backend_of(described).lower(network.path, plan, network.units, tmp_path / "m.onnx")
    assert operands_quantized(tmp_path / "m.onnx") == [1] * adds


@every_network
def test_the_file_computes_what_the_fake_quantised_model_does(name, tmp_path):
    network, _ = exported(name)
    target = replace(
        target_from_name("tensorrt"), reference=FP32
    )  # in half precision the two would differ by its rounding
    quantizer = quantizer_of(network, target)
    plan = quantizer.plan(network.formats("w8a8"))
    backend_of(target).lower(network.path, plan, network.units, tmp_path / "m.onnx", BATCH)
    results = run_plain(tmp_path / "m.onnx", network.batch, disable_quant_qdq="1")
    assert relative_error(results, network.traced.run((network.batch,), quantizer.edits(plan)).numpy()) < 1e-3


@every_network
def test_every_add_is_a_join_that_a_policy_may_keep_in_float(name, tmp_path):
    (network, adds), target = exported(name), target_from_name("tensorrt")
    joins = find_joins(network.traced, find_groups(network.traced, network.units), rules_of(target))
    assert len(joins) == adds
    plan = quantizer_of(network, target).plan(network.formats("w8a8"), frozenset({joins[0].name}))
    backend_of(target).lower(network.path, plan, network.units, tmp_path / "m.onnx")
    assert sorted(operands_quantized(tmp_path / "m.onnx")) == [0] + [1] * (adds - 1)


def test_adds_of_float_layers_stay_as_they_are(tmp_path):
    (network, adds), target = exported("resnet18"), target_from_name("tensorrt")
    for formats in (network.formats("fp16"), network.formats("w8a16")):
        backend_of(target).lower(
            network.path, quantizer_of(network, target).plan(formats), network.units, tmp_path / "m.onnx"
        )
        assert operands_quantized(tmp_path / "m.onnx") == [0] * adds


@every_network
def test_a_worker_s_copy_makes_the_same_plan(name):
    network, _ = exported(name)
    quantizer, formats = quantizer_of(network, target_from_name("tensorrt")), network.formats("w8a8")
    quantizer.prepare({path: (chosen,) for path, chosen in formats.items()})
    copied = pickle.loads(pickle.dumps(quantizer))  # noqa: TID251 - our own bytes
    assert copied.plan(formats).tensors == quantizer.plan(formats).tensors


@needs_rtx
def test_kernels_of_tensorrt_rtx_read_the_skip_as_integers(tmp_path):
    """They compute an add behind the convolution's kernel: its sums are floats, and the skip used to be halves."""
    network, adds = exported("resnet18")
    target = target_from_name("tensorrt-rtx", ["sm89"])
    joins = find_joins(network.traced, find_groups(network.traced, network.units), rules_of(target))
    read = {}
    for label, kept in (("float", frozenset(join.name for join in joins)), ("integer", frozenset())):
        path = tmp_path / f"{label}.onnx"
        plan = quantizer_of(network, target).plan(network.formats("w8a8"), kept)
        backend_of(target).lower(network.path, plan, network.units, path)
        record = tensorrt.build_plan(path, path.with_suffix(".plan"), "tensorrt-rtx", "sm89")
        assert isinstance(record, tensorrt.Built), record
        kernels = [kernel for kernel in record.layers if any("/Add" in node for node in kernel.onnx_nodes)]
        assert len(kernels) == adds
        read[label] = {tensor.dtype for kernel in kernels for tensor in kernel.inputs}
    assert "Half" in read["float"]
    assert read["integer"] == {"Float", "Int8"}
