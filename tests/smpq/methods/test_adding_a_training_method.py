"""One file with one decorator is a method that trains, everywhere."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from deploy.commands.methods_table import what_follows
from smpq.methods import METHODS
from tests.commands import assert_matches, done, refused

NAME = "narrowest"
MODULE = "tests.smpq.methods.thrown_away_training"
TASK = (
    "--task",
    "tests.trainable_task:task",
    "--target",
    "simulate",
    "--formats",
    "w3a8,w8a8",
    "--rounding",
    "nearest",
)


@pytest.fixture
def added():
    importlib.import_module(MODULE)
    yield METHODS[NAME]
    METHODS.pop(NAME, None)
    del sys.modules[MODULE]


def read(file):
    return json.loads(file.read_text())


@pytest.mark.usefixtures("added")
def test_it_is_listed():
    found = json.loads(done("methods", "--json").out)[NAME]
    assert (found["summary"], found["epochs"]) == (
        "Every layer gets its smallest format, and is trained for two steps.",
        1,
    )
    assert NAME in done("methods").out
    assert what_follows(METHODS[NAME]).startswith("Trains policy and weights together, 1 epochs by default")


@pytest.mark.usefixtures("added")
def test_it_does_the_whole_job(tmp_path):
    run = tmp_path / "run"
    arguments = ("run", *TASK, "--method", NAME, "--budget", "avg_bits=4", "--out", run)
    assert "narrowest: two steps are few" in done(*arguments).err
    report, tuned = read(run / "report.json"), read(run / "finetune.json")
    assert report["met"]
    assert set(report["policy"].values()) == {"w3a8"}
    assert report["options"]["--method"] == [NAME]
    assert report["scores"]["method"] == NAME
    assert (tuned["settings"]["method"], tuned["settings"]["budget"]) == (NAME, "avg_bits=4")
    assert "trained together, by the method narrowest" in (run / "report.html").read_text()
    assert report["verification"]["lost_at"] != "onnx"
    compared = json.loads(done("compare", run, run, "--json").out)
    assert [each["method"] for each in compared["runs"]] == [NAME, NAME], "as in the report, not made by hand"
    assert "smpq curve" not in (run / "report.html").read_text(), "there are no scores that it could solve"

    made = (run / "finetuned.safetensors").read_bytes()
    (run / "finetune.json").unlink()  # as a kill between the two files leaves it
    assert "trained already" in done(*arguments).err
    assert (run / "finetuned.safetensors").read_bytes() == made
    assert read(run / "finetune.json") == tuned


@pytest.mark.usefixtures("added")
def test_a_run_that_was_trained_is_not_trained_otherwise_or_searched(tmp_path):
    run = tmp_path / "run"
    done("run", *TASK, "--method", NAME, "--budget", "avg_bits=4", "--out", run)
    other = refused("run", *TASK, "--method", NAME, "--budget", "avg_bits=5", "--out", run)
    assert_matches("was trained with budget='avg_bits=4', now 'avg_bits=5' is asked for: use another --out", other)
    longer = refused("run", *TASK, "--method", NAME, "--budget", "avg_bits=4", "--finetune", "3", "--out", run)
    assert_matches("was trained with epochs=1.0, now 3.0 is asked for", longer)
    for command in (("run", *TASK, "--budget", "avg_bits=4", "--out", run), ("solve", run, "--budget", "avg_bits=4")):
        assert_matches(f"was trained by --method {NAME}, with its policy: use another --out", refused(*command))


@pytest.mark.usefixtures("added")
def test_what_it_cannot_be_asked(tmp_path):
    arguments = ("run", *TASK, "--method", NAME, "--out", tmp_path / "run")
    for more in (("--finetune", "0"), ("--reconstruct", "mse")):
        message = refused(*arguments, "--budget", "avg_bits=4", *more)
        assert_matches(f"--method {NAME} trains the weights itself: leave out --reconstruct", message)
    message = refused(*arguments, "--budget", "avg_bits=4", "--seconds", "5")
    assert_matches(f"--seconds ends a search .* and --method {NAME} trains", message)
    for budget in ("latency=0.8x", "drop=0.5"):
        assert_matches(
            f"--method {NAME} trains for limits that are known before", refused(*arguments, "--budget", budget)
        )
    assert_matches(
        "no policy meets the budget; the nearest one has avg_bits 3", refused(*arguments, "--budget", "avg_bits=2")
    )
    assert not (tmp_path / "run" / "policy.json").exists()
