"""`smpq run` from a user's own task to an engine, on every target that builds here."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from calib.tasks import load_task
from tests.commands import done
from tests.deploy.backends.builds import needs_rtx

EFFORT = ("--evaluations", "24", "--samples", "32")


def run_example(out, *arguments):
    done("run", "--task", "examples.custom_task:task", "--out", out, *EFFORT, *arguments)
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def integer_report(tmp_path_factory):
    run = tmp_path_factory.mktemp("job") / "run"
    return run, run_example(run, "--target", "ort-cpu", "--formats", "w8a8,fp32", "--budget", "size=0.4x")


def test_every_layer_of_the_engine_runs_as_planned(integer_report):
    _, report = integer_report
    assert report["met"]
    assert {layer["path"] for layer in report["layers"]} == {
        "stem",
        "depthwise",
        "pointwise",
        "twice",
        "shrink",
        "mix",
        "head",
    }
    assert all(layer["kernel_agrees"] for layer in report["layers"]), report["layers"]
    assert len(set(report["policy"].values())) == 2, "the budget asks for a mix"


def test_what_stays_float_is_said(integer_report):
    _, report = integer_report
    assert [(entry["path"], entry["operator"]) for entry in report["skipped"]] == [("up", "conv_transpose2d")]


def test_the_engine_predicts_what_the_fake_quantised_model_does(integer_report):
    run, report = integer_report
    stages = report["verification"]["stages"]
    assert stages["onnx"]["agreement"] > 0.99
    assert stages["engine"]["agreement"] > 0.99
    assert json.loads((run / "verify.json").read_text())["stages"]["engine"]["mean"] == report["accuracy"]["engine"]


def test_simulated_weights_are_integers_that_anyone_can_count(tmp_path):
    report = run_example(
        tmp_path / "run", "--target", "simulate", "--formats", "w2a8,w3a4,w5a6,w8a8", "--budget", "avg_bits=4"
    )
    path = tmp_path / "run" / "model.simulate.onnx"
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    bits = parameters = 0
    for unit, text in report["policy"].items():
        node = next(node for node in graph.node if node.name == unit)
        stored = tensors[makers[node.input[1]].input[0]]
        width = int(text[1])
        assert stored.data_type == (TensorProto.INT4 if width <= 4 else TensorProto.INT8)
        integers = numpy_helper.to_array(stored).astype(int)
        assert -(2 ** (width - 1)) <= integers.min() <= integers.max() < 2 ** (width - 1)
        bits, parameters = bits + width * integers.size, parameters + integers.size
    assert bits / parameters == pytest.approx(report["avg_bits"])
    assert report["avg_bits"] <= 4
    session = ort.InferenceSession(str(path))
    hits = [
        session.run(None, {session.get_inputs()[0].name: batch.inputs[0].numpy()})[0].argmax(1) == batch.target.numpy()
        for batch in load_task("examples.custom_task:task", None, None).evaluation()
    ]
    assert np.concatenate(hits).mean() == pytest.approx(report["accuracy"]["engine"], abs=0.01)


@needs_rtx
def test_a_tensorrt_plan_is_built_and_checked_without_a_gpu(tmp_path):
    report = run_example(
        tmp_path / "run", "--target", "tensorrt-rtx", "--sm", "sm86", "--sm", "sm120", "--budget", "size=0.4x"
    )
    assert set(report["engine"]) == {"sm86", "sm120"}
    assert all((tmp_path / "run" / plan).stat().st_size > 0 for plan in report["engine"].values())
    assert {"w8a8", "fp16"} == set(report["policy"].values())
    assert all(layer["kernel_agrees"] for layer in report["layers"]), report["layers"]
    assert report["latency"] is None
    assert "GPU" in report["latency_note"]
    assert report["accuracy"]["onnx"] == pytest.approx(report["accuracy"]["fake_quant"], abs=0.02)
