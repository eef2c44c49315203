"""One file with one decorator, and one table, are a runtime everywhere."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from deploy.backends import BACKENDS, backend_of
from deploy.targets.families import FAMILIES
from tests.commands import done, refused

NAME = "thrown-away"
MODULE = "tests.deploy.backends.thrown_away"
TASK = ("--task", "tests.tiny_task:task", "--evaluations", "12", "--samples", "16", "--effort", "fast", "--quiet")


@pytest.fixture
def added():
    importlib.import_module(MODULE)
    yield BACKENDS[NAME]
    BACKENDS.pop(NAME, None)
    FAMILIES.pop(NAME, None)
    del sys.modules[MODULE]


@pytest.mark.usefixtures("added")
def test_its_target_is_listed():
    assert json.loads(done("targets", NAME, "--json").out)[NAME]["backend"] == NAME
    assert NAME in done("targets").out


@pytest.mark.usefixtures("added")
def test_it_does_the_whole_job(tmp_path):
    run = tmp_path / "run"
    done("run", *TASK, "--target", NAME, "--budget", "size=0.9x", "--out", run)
    report, built = (json.loads((run / name).read_text()) for name in ("report.json", "build.json"))
    assert report["met"]
    assert (report["engine"], report["float_engine"]) == (f"engine.{NAME}.away", "engine.float.away")
    assert set(built["engines"]) == {f"engine.{NAME}.away", "engine.float.away"}
    assert built["engines"][f"engine.{NAME}.away"]["versions"] == {"away": "1"}
    assert report["verification"]["stages"]["engine"]["mean"] is not None, "the engine was opened and run"
    assert report["latency"]["ratio"] > 0, "and timed"
    curve = json.loads(done("curve", run, "--engines", "1", "--json").out)
    assert {point["kind"] for point in curve["points"]} >= {"uniform", "float"}
    assert "quantize_static" not in [point["kind"] for point in curve["points"]], "it has no quantiser of its own"
    assert {point["judged"]["measured_on"] for point in curve["points"]} == {"engine"}
    assert f"smpq profile knows no profiler for engines of {NAME}" in refused("profile", run)
    assert f"this run is for {NAME}" in refused("export", run, "--format", "onnx-qdq")


def test_a_table_that_names_no_back_end_is_a_bug(added):
    target = FAMILIES[NAME].target
    del BACKENDS[NAME]
    with pytest.raises(ValueError, match="the table of thrown-away names 'thrown-away': known are "):
        backend_of(target)
