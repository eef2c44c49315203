"""One file with one decorator is a method everywhere."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from smpq.methods import DEFAULT_METHOD, METHODS
from tests.commands import assert_matches, done, refused

NAME = "alphabetical"
TASK = ("--task", "tests.tiny_task:task", "--evaluations", "12", "--samples", "16", "--effort", "fast", "--quiet")


@pytest.fixture
def added():
    importlib.import_module("tests.smpq.methods.thrown_away")
    yield METHODS[NAME]
    METHODS.pop(NAME, None)
    del sys.modules["tests.smpq.methods.thrown_away"]


def read(file):
    return json.loads(file.read_text())


@pytest.mark.usefixtures("added")
def test_it_is_listed():
    assert json.loads(done("methods", "--json").out)[NAME]["summary"] == "Layers late in the alphabet matter more."
    assert NAME in done("methods").out


@pytest.mark.usefixtures("added")
def test_it_does_the_whole_job(tmp_path):
    run = tmp_path / "run"
    done("run", *TASK, "--method", NAME, "--budget", "size=0.9x", "--out", run)
    scores, report = read(run / "scores.json"), read(run / "report.json")
    assert (scores["method"], scores["estimator"]) == (NAME, "alphabet")
    assert report["scores"]["method"] == NAME
    assert report["met"]
    assert f"{NAME} (alphabet)" in (run / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAME, "hawq", "ohq"])
@pytest.mark.usefixtures("added")
def test_it_meets_a_latency(tmp_path, name):
    run = tmp_path / "run"
    done("run", *TASK, "--method", name, "--budget", "latency=50x,size=0.9x", "--out", run)
    assert read(run / "scores.json")["method"] == name
    assert read(run / "report.json")["observations"]
    assert read(run / "report.json")["met"]


@pytest.mark.usefixtures("added")
def test_a_run_of_a_method_that_is_not_there_any_more(tmp_path):
    run = tmp_path / "run"
    done("score", *TASK, "--target", "simulate", "--method", NAME, "--out", run)
    del METHODS[NAME]
    message = refused("solve", run, "--budget", "size=0.9x")
    assert_matches(rf"scores\.json: unknown method '{NAME}': choose one of {DEFAULT_METHOD}", message)


def test_help_lists_the_methods():
    for command in ("run", "score"):
        text = " ".join(done(command, "--help").out.split()).replace("- ", "-")  # lines may end at a hyphen
        assert ", ".join(METHODS) in text, command
