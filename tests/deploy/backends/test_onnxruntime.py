"""Engines for ONNX Runtime: the traps of its optimisers, the record, and what is read back."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from calib.errors import UserError
from deploy.backends import backend_of
from deploy.backends.base import BuildFailed
from deploy.backends.onnxruntime import OrtEngineRecord, build_engine, check_units, load_engine, unit_kernels
from deploy.backends.onnxruntime.engine import open_session
from deploy.backends.onnxruntime.record import ENGINE_FILE, find_record
from deploy.runner.ort import integer_sums_overflow
from deploy.targets.target import target_from_name
from tests.deploy.networks import mlp, relative_error, residual


def _engine(exported, directory, *texts, exact=False, target="ort-cpu"):
    lowered = exported.lower(exported.formats(*texts), target, directory)
    engine = directory / f"engine.{target}.onnx"
    record = build_engine(lowered.path, engine, exact=exact)
    assert isinstance(record, OrtEngineRecord)
    return engine, record, lowered


def _operators(model, directory, **settings):
    """The operators of the optimised graph in a session without our settings."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    ort.InferenceSession(str(model), options, **settings)
    return {node.name: node.op_type for node in onnx.load(str(directory / "optimized.onnx")).graph.node}


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (residual, ("fp32",)),
        (residual, ("w8a8",)),
        (residual, ("w7a8",)),
        (residual, ("w8a8", "fp32", "w8a8", "fp32", "w8a8", "fp32", "w8a8", "fp32", "w8a8", "fp32")),
        (residual, ("fp32", "w8a8", "fp32", "w8a8", "fp32", "w8a8", "fp32", "w8a8", "fp32", "w8a8", "fp32")),
        (mlp, ("w8a8",)),
        (mlp, ("w4a16b16",)),
        (mlp, ("w4a16",)),
        (mlp, ("w8a16",)),
        (mlp, ("w4a16b16", "w8a8", "fp32")),
        (mlp, ("w8a8", "fp32", "w4a16b32")),
    ],
)
def test_every_unit_runs_as_planned(tmp_path, make, texts):
    exported = make()
    engine, _, lowered = _engine(exported, tmp_path, *texts)
    checks = check_units(unit_kernels(engine, exported.units), lowered.plan.formats)
    assert len(checks) == len(exported.units)
    assert [check for check in checks if not check.agrees] == []


@pytest.mark.parametrize("text", ["w8a8", "w7a8", "wt8a8", "wt7a8"])
def test_linear_layers_in_a_row_are_integer_products_and_nothing_else(tmp_path, text):
    engine, _, lowered = _engine(exported := mlp(), tmp_path, text)
    open_session(engine, find_record(engine), optimized=tmp_path / "optimized.onnx")
    found = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert sorted(set(found) - {"Reshape", "Flatten"}) == ["QGemm", "QuantizeLinear"]
    assert (found.count("QGemm"), found.count("QuantizeLinear")) == (3, 1)
    (result,) = load_engine(engine).run([exported.batch.numpy()])
    assert relative_error(result, lowered.expected) < 1e-3


def test_float_convolutions_in_blocked_layout_are_found_by_the_tensor_they_make(tmp_path):
    exported = residual()
    engine, _, _ = _engine(exported, tmp_path, "fp32")
    kernels = unit_kernels(engine, exported.units)
    assert kernels["stem"] == kernels["a"] == kernels["b"] == "Conv"
    assert kernels["head"] == "FusedGemm"


def test_a_float_layer_between_integers_is_not_quantised_behind_our_back(tmp_path):
    exported = residual()
    engine, record, lowered = _engine(exported, tmp_path, "w8a8", "fp32", "w8a8")
    assert "WeightBiasQuantization" in record.disabled_optimizers
    assert unit_kernels(engine, exported.units)["a"] == "Conv"
    # what would happen otherwise
    assert "QLinearConv" in {
        kind for name, kind in _operators(lowered.path, tmp_path).items() if name.startswith("a_token")
    }
    stolen = check_units({"a": "QLinearConv"}, {"a": lowered.plan.formats["a"]})
    assert not stolen[0].agrees


def test_weight_only_layers_keep_their_kernel_behind_a_bias(tmp_path):
    exported = mlp()
    engine, record, lowered = _engine(exported, tmp_path, "w4a16b16")
    assert "MatMulAddFusion" in record.disabled_optimizers
    assert set(unit_kernels(engine, exported.units).values()) == {"MatMulNBits"}
    # The trap: MatMul and Add become a Gemm first, whose weight is then dequantised on every run.
    first = exported.units[0].path
    assert _operators(lowered.path, tmp_path)[f"{first}/weight/DQ"] == "DequantizeLinear"


def test_two_bit_blocks_become_kernels_of_two_bits(tmp_path):
    exported = mlp()
    engine, record, lowered = _engine(exported, tmp_path, "w2a16b32", "w4a16b32", "w8a8")
    stored = onnx.load(str(lowered.path))
    onnx.checker.check_model(stored)
    assert (stored.opset_import[0].version, stored.ir_version) == (25, 13)
    types = {tensor.name: tensor.data_type for tensor in stored.graph.initializer}
    expected = [onnx.TensorProto.INT2, onnx.TensorProto.INT4, onnx.TensorProto.INT8]
    assert [types[f"{unit.path}/weight"] for unit in exported.units] == expected
    open_session(engine, record, optimized=tmp_path / "optimized.onnx")
    products = [
        node for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node if node.op_type == "MatMulNBits"
    ]
    assert [one.i for node in products for one in node.attribute if one.name == "bits"] == [2, 4]
    assert [*unit_kernels(engine, exported.units).values()] == ["MatMulNBits", "MatMulNBits", "QGemm"]
    # these kernels round their inputs to 8 bits, block by block; the file says what the fake-quantised model does
    inputs = (exported.batch.numpy(),)
    (fast,) = load_engine(engine).run(inputs)
    build_engine(lowered.path, engine, exact=True)
    (exact,) = load_engine(engine).run(inputs)
    assert relative_error(exact, lowered.expected) < 1e-5
    assert relative_error(fast, lowered.expected) < 0.02


def test_a_weight_only_convolution_is_told_from_an_integer_one(tmp_path):
    exported = residual()
    engine, _, lowered = _engine(exported, tmp_path, "w8a16")
    kernels = unit_kernels(engine, exported.units)
    assert kernels["grouped"].endswith(" + DequantizeLinear")
    wrong = check_units(kernels, {"grouped": exported.formats("w8a8")["stem"]})
    assert not wrong[0].agrees
    assert check_units(kernels, {"grouped": lowered.plan.formats["grouped"]})[0].agrees


def test_activations_are_uint8_because_int8_does_not_absorb_the_relu(tmp_path):
    exported = residual()
    engine, _, _ = _engine(exported, tmp_path, "w8a8")
    graph = onnx.load(str(engine)).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"} == {onnx.TensorProto.UINT8}


def test_eight_bit_weights_do_not_overflow(tmp_path):
    # CPUs without VNNI sum two products in 16 bits, and 255 * 127 * 2 does not fit. A layer of the largest weights
    # shows it.
    exported = mlp()
    plan, _ = exported.plan(exported.formats("w8a8"), "ort-cpu")
    largest = {
        path: replace(weight, values=torch.full_like(weight.values, 127)) for path, weight in plan.weights.items()
    }
    model, inputs = tmp_path / "model.onnx", (exported.batch.numpy() + 2,)
    backend_of(target_from_name("ort-cpu")).lower(exported.path, replace(plan, weights=largest), exported.units, model)
    results = {}
    for exact in (False, True):
        record = build_engine(model, tmp_path / f"{exact}.onnx", exact=exact)
        assert isinstance(record, OrtEngineRecord)
        (results[exact],) = load_engine(tmp_path / f"{exact}.onnx").run(inputs)
    assert relative_error(results[False], results[True]) < 0.02
    if integer_sums_overflow():
        session = ort.InferenceSession(str(model), disabled_optimizers=["WeightBiasQuantization", "MatMulAddFusion"])
        assert relative_error(session.run(None, {session.get_inputs()[0].name: inputs[0]})[0], results[True]) > 0.05


def test_a_weight_of_eight_bits_used_twice_builds(tmp_path):
    # With one stored copy ONNX Runtime fails where it has to rewrite the weight: "Attempt to replace the existing
    # tensor".
    exported = residual()
    engine, _, _ = _engine(exported, tmp_path, "w8a8")
    assert unit_kernels(engine, exported.units)["twice"] == "QLinearConv"


def test_the_probe_for_overflow_says_yes_or_no():
    assert integer_sums_overflow() in {True, False}


def test_the_engine_loads_in_plain_onnxruntime_with_what_the_file_says(tmp_path):
    exported = residual()
    engine, _, _ = _engine(exported, tmp_path, "w8a8", "fp32", "w8a8")
    entry = json.loads((tmp_path / ENGINE_FILE).read_text())["engines"][engine.name]
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, entry["graph_optimization_level"])
    options.intra_op_num_threads = entry["intra_op_num_threads"]
    options.inter_op_num_threads = entry["inter_op_num_threads"]
    for key, value in entry["session_config"].items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(
        str(engine), options, providers=entry["providers"], disabled_optimizers=entry["disabled_optimizers"]
    )
    (expected,) = load_engine(engine).run((exported.batch.numpy(),))
    np.testing.assert_array_equal(session.run(None, {"x": exported.batch.numpy()})[0], expected)
    assert entry["inputs"] == [{"name": "x", "shape": ["batch", 3, 8, 8], "dtype": "tensor(float)"}]
    assert (entry["intra_op_num_threads"], entry["versions"]["onnxruntime"]) == (1, ort.__version__)


def test_engines_of_one_directory_share_the_file(tmp_path):
    exported = mlp()
    first, _, _ = _engine(exported, tmp_path, "fp32", target="simulate", exact=True)
    second, record, _ = _engine(exported, tmp_path, "w8a8")
    assert set(json.loads((tmp_path / ENGINE_FILE).read_text())["engines"]) == {first.name, second.name}
    assert find_record(second) == record
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_a_file_that_onnxruntime_refuses_is_a_value_and_leaves_nothing(tmp_path):
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")],
        "refused",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("nowhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    result = build_engine(tmp_path / "model.onnx", tmp_path / "engine.onnx")
    assert isinstance(result, BuildFailed)
    assert "NoSuchOperator" in result.reason
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda engine, file: engine.unlink(), "there is no engine"),
        (lambda engine, file: file.unlink(), "is missing"),
        (lambda engine, file: file.write_text(file.read_text()[:50]), "is not valid JSON"),
        (lambda engine, file: file.write_text("[]"), "expected `object`, got `array`"),
        (
            lambda engine, file: file.write_text('{"schema": 99, "engines": {}}'),
            "schema 99, this version of smpq reads schema 1",
        ),
        (lambda engine, file: file.write_text('{"schema": 1, "engines": {}}'), "has no entry for"),
        (
            lambda engine, file: file.write_text(json.dumps({"schema": 1, "engines": {engine.name: {}}})),
            "missing required field",
        ),
        (
            lambda engine, file: file.write_text(
                file.read_text().replace('"build_seconds": ', '"build_seconds": "a", "b": ')
            ),
            "damaged",
        ),
        (
            # not empty on a CPU whose integer sums overflow
            lambda engine, file: file.write_text(
                re.sub(r'"session_config": \{[^}]*\}', '"session_config": {"a.b": "c"}', file.read_text())
            ),
            "session_config has keys that no engine of smpq has",
        ),
        (
            lambda engine, file: file.write_text(
                file.read_text().replace("CPUExecutionProvider", "ShellExecutionProvider")
            ),
            "providers names 'ShellExecutionProvider'",
        ),
        (
            lambda engine, file: file.write_text(
                file.read_text().replace('"intra_op_num_threads": 1', '"intra_op_num_threads": 1024')
            ),
            "asks for 1024 threads, and this machine has",
        ),
        (
            lambda engine, file: engine.write_bytes(engine.read_bytes()[:2000]),
            "is not the file that engine.json describes",
        ),
    ],
)
def test_missing_and_damaged_files_are_user_errors(tmp_path, damage, message):
    engine, _, _ = _engine(mlp(), tmp_path, "w8a8")
    damage(engine, tmp_path / ENGINE_FILE)
    with pytest.raises(UserError, match=message):
        load_engine(engine)


@pytest.mark.parametrize("inputs", [(), (np.zeros((1, 7), np.float32),), (np.zeros((1, 1, 8, 8), np.float64),)])
def test_inputs_that_do_not_fit_are_user_errors(tmp_path, inputs):
    engine, _, _ = _engine(mlp(), tmp_path, "fp32")
    with pytest.raises(UserError, match="take"):
        load_engine(engine).run(inputs)
