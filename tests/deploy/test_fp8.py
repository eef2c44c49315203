"""FP8: plans that mix it with integers and half precision, read from NVIDIA's builder and from ONNX Runtime."""

from __future__ import annotations

import pytest

from calib.formats.format import Format
from deploy.backends.tensorrt import build_plan, check_units
from deploy.targets.target import capability, target_from_name
from tests.deploy.backends.builds import needs_rtx, reason_of
from tests.deploy.fp8_nets import TEXTS, exported
from tests.deploy.networks import mlp, relative_error, run_plain

FP8 = Format.from_text("fp8")


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_exactly_the_fp8_units_become_fp8_kernels(name, tmp_path):
    network = exported(name)
    formats = network.formats(*TEXTS[name])
    lowered = network.lower(formats, "tensorrt-rtx", tmp_path, batch=2)
    for gpu in ("sm89", "sm120"):
        record = build_plan(lowered.path, tmp_path / "model.plan", "tensorrt-rtx", gpu)
        checks = check_units(record.layers, formats)
        assert [check for check in checks if not check.agrees] == []
        assert {check.path for check in checks if check.found == "fp8"} == {
            path for path, chosen in formats.items() if chosen == FP8
        }
    outcome = build_plan(lowered.path, tmp_path / "model.plan", "tensorrt-rtx", "sm86")
    assert "fp8_e4m3" in reason_of(outcome)


def test_onnx_computes_what_the_fake_quantised_model_does(tmp_path):
    network = mlp()
    lowered = network.lower(network.formats("fp8", "wfp8a16", "w1a2"), "simulate", tmp_path)
    assert relative_error(run_plain(lowered.path, network.batch, disable_quant_qdq="1"), lowered.expected) < 1e-4


@pytest.mark.parametrize(
    ("target", "gpus", "reason"),
    [
        ("tensorrt-rtx", ["sm86"], "no FP8 before sm89"),
        ("tensorrt-rtx", [], "no FP8 before sm89"),
        ("jetson-orin", [], "Orin, sm87, has none"),
        ("tensorrt-10.13", [], "name it with --sm"),
        ("ort-cpu", [], "become floats on every run"),
        ("ort-cuda", [], "become floats on every run"),
        ("ort-tensorrt", [], "not in the provider's documentation"),
    ],
)
@pytest.mark.parametrize(("text", "operator"), [("fp8", "conv2d"), ("fp8", "linear"), ("wfp8a16", "linear")])
def test_others_refuse_it_with_a_reason(target, gpus, reason, text, operator):
    answer = capability(target_from_name(target, gpus, look=False), operator, Format.from_text(text), 64)
    assert answer.status == "refused"
    assert reason in answer.note


@pytest.mark.parametrize("gpu", ["sm89", "sm120", "sm121"])
def test_gpus_that_have_it(gpu):
    target = target_from_name("tensorrt-rtx", [gpu])
    assert {capability(target, operator, FP8, 64).status for operator in ("conv2d", "linear", "linear_nd")} == {
        "native"
    }
    weight_only = Format.from_text("wfp8a16")
    assert [capability(target, one, weight_only, 64).status for one in ("conv2d", "linear")] == [
        "dequantized",
        "native",
    ]
