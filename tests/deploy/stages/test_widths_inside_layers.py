"""Blocks with widths of their own through the whole job, and through a reconstruction."""

from __future__ import annotations

import json

import pytest

from smpq.training.finetuned import FineTunedWeights
from tests.commands import assert_matches, copy_of, done, refused
from tests.linear_task import formats

TASK = ("--task", "tests.linear_task:task", "--rounding", "gptq", "--effort", "fast", "--samples", "32", "--quiet")
OFFERED = formats("m2", "m2.5", "m3", "z4")
SEARCH = (*TASK, "--target", "simulate", "--formats", OFFERED, "--budget", "avg_bits=2.5")


def read(run, name):
    return json.loads((run / name).read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "run"
    done("run", *SEARCH, "--out", run)
    return run


def test_the_engine_is_the_model_that_was_searched(plain):
    report = read(plain, "report.json")
    assert report["met"]
    assert 2 < report["avg_bits"] <= 2.5
    assert {layer["bits"] for layer in report["layers"]} <= {2, 2.5, 3, 4}
    assert read(plain, "run.json")["settings"]["widths"] == "error"
    for stage in ("onnx", "engine"):
        assert read(plain, "verify.json")["stages"][stage]["agreement"] > 0.95


def test_a_reconstruction_keeps_widths_and_zero_points(plain, tmp_path):
    run = copy_of(plain, tmp_path / "run")
    done("reconstruct", run, "--iterations", "30", "--quiet")
    record = read(run, "finetune.json")
    assert record["after"]["value"] > record["before"]["value"]
    weights = FineTunedWeights.load(run / "finetuned.safetensors").weights
    assert all(weight.zero_point is not None for weight in weights.values())
    policy = read(run, "policy.json")["policy"]
    assert {path: weight.type.name for path, weight in weights.items()} == {
        path: text.partition("a16")[0].removeprefix("w") for path, text in policy.items()
    }
    for command in ("export", "build", "verify"):
        done(command, run, "--quiet")
    for stage in ("onnx", "engine"):
        assert read(run, "verify.json")["stages"][stage]["agreement"] > 0.95


def test_they_are_not_fine_tuned_and_a_wrong_rule_is_told(plain, tmp_path):
    run = copy_of(plain, tmp_path / "run")
    assert_matches("cannot be trained", refused("finetune", run, "--epochs", "1"))
    message = refused("run", *SEARCH, "--widths", "down", "--out", tmp_path / "other")
    assert_matches("--widths must be one of error, slim, graph, not 'down'", message)
