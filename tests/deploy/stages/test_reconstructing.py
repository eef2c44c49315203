"""Reconstruction as a stage: later stages use its weights, and `smpq run` does it by itself."""

import json
from dataclasses import replace

import pytest

from deploy.stages import tuning
from deploy.stages.finetuning import FINE_TUNED
from smpq.reconstruction.partial import PartialFile
from smpq.reconstruction.settings import ReconstructionSettings
from tests.commands import assert_matches, copy_of, done, refused

TASK = ("--task", "tests.trainable_task:task", "--rounding", "nearest", "--effort", "fast", "--samples", "32")
SEARCH = (*TASK, "--target", "simulate", "--formats", "w2a8,w3a8", "--budget", "avg_bits=2", "--quiet")
QUICK = ("--iterations", "80", "--quiet")


def read(run, name):
    return json.loads((run / name).read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "run"
    done("run", *SEARCH, "--out", run)
    return run


def test_the_engine_is_the_reconstructed_model(plain, tmp_path):
    run = copy_of(plain, tmp_path / "run")
    done("reconstruct", run, *QUICK)
    assert not (run / PartialFile.NAME).exists()
    for command in ("export", "build", "verify", "report"):
        done(command, run, "--quiet")
    before, after = read(plain, "verify.json")["stages"], read(run, "verify.json")["stages"]
    record = read(run, "finetune.json")
    assert record["settings"]["reconstruction"] == "mse"
    assert record["after"]["value"] > record["before"]["value"]
    assert after["float"] == before["float"], "the baseline is the model that was given"
    assert after["fake_quant"]["mean"] > before["fake_quant"]["mean"]
    for stage in ("onnx", "engine"):
        assert after[stage]["agreement"] > 0.98
    report = read(run, "report.json")
    assert report["finetuning"]["after"] == record["after"]
    assert report["options"]["--reconstruct"] == ["mse"]


def test_a_run_reconstructs_what_it_has_chosen_once(plain, tmp_path, monkeypatch):
    asked = ReconstructionSettings("brecq", iterations=40)
    monkeypatch.setattr(tuning, "tuning_for", lambda _method, _epochs, loss: replace(asked, loss=loss))
    run = copy_of(plain, tmp_path / "run")
    done("run", *SEARCH, "--out", run, "--reconstruct", "brecq")
    weights = (run / FINE_TUNED).read_bytes()
    assert read(run, "report.json")["finetuning"]["settings"]["reconstruction"] == "brecq"
    done("run", *SEARCH, "--out", run, "--reconstruct", "brecq")
    assert (run / FINE_TUNED).read_bytes() == weights
    done("run", *SEARCH, "--out", run, "--reconstruct", "mse")
    assert read(run, "report.json")["finetuning"]["settings"]["reconstruction"] == "mse"


def test_wrong_input(plain, tmp_path):
    run = copy_of(plain, tmp_path / "run")
    assert_matches("not both", refused("run", *SEARCH, "--out", run, "--reconstruct", "mse", "--finetune", "1"))
    assert_matches("brecq, fima-q, mse", refused("reconstruct", run, "--loss", "mae"))
    (run / PartialFile.NAME).write_bytes(b"nonsense")
    assert_matches("delete it; the reconstruction then begins anew", refused("reconstruct", run, *QUICK))
