"""`smpq curve` and `smpq take` at the command line: a whole run on a tiny network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands import TINY, done, refused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run with a curve, which was scored by the same command: its settings are there, its scores are not."""
    run = tmp_path_factory.mktemp("curve") / "run"
    done("score", *TINY, "--formats", "w8a8,fp32", "--out", run)
    (run / "scores.json").unlink()
    return run, json.loads(done("curve", run, "--engines", "4", "--json").out)


def test_from_the_scores_to_the_report_of_a_point(curved):
    run, curve = curved
    assert (run / "scores.json").exists(), "scored first by itself"
    assert curve == json.loads((run / "curve.json").read_text())
    assert {"float", "uniform", "quantize_static"} <= {point["kind"] for point in curve["points"]}
    taken = next(point for point in curve["points"] if point["kind"] == "uniform")
    said = done("take", run, taken["name"]).out
    assert f"policy: {run / 'policy.json'} ({taken['name']}: {taken['ratio']:.3f}x of float" in said
    assert json.loads((run / "policy.json").read_text()) == taken["policy"]
    for command in ("export", "build", "measure", "verify", "report"):
        done(command, run)
    report = json.loads((run / "report.json").read_text())
    assert report["curve"] == curve
    assert report["policy"] == taken["policy"]["policy"]
    assert report["accuracy"]["engine"] == taken["judged"]["accuracy"]
    page = (run / "report.html").read_text()
    assert "Latency against accuracy" in page
    assert "A policy that was chosen for no budget." in page


def test_lines_for_people(curved):
    run, _ = curved
    lines = done("curve", run, "--engines", "4").out.splitlines()
    points = json.loads((run / "curve.json").read_text())["points"]
    assert [line.split(":")[0] for line in lines[: len(points)]] == [point["name"] for point in points]
    for line, point in zip(lines, points, strict=False):
        assert f"{point['ratio']:.3f}x of float" in line
        assert ("[float]" in line, "[dominated]" in line) == (point["kind"] == "float", point["dominated"])
    assert lines[-1] == f"curve: {run / 'curve.json'}; smpq take RUN POINT makes a point the policy"


def test_sizes_are_told_as_shares_of_fp32(tmp_path):
    run = tmp_path / "run"
    done("score", *TINY, "--target", "tensorrt-rtx", "--out", run)
    lines = done("curve", run, "--engines", "2").out.splitlines()
    (line,) = [line for line in lines if "[float]" in line]
    assert re.match(r"P\d+: 0\.50\dx of fp32's size ", line)


def test_what_is_refused(curved, tmp_path):
    run, _ = curved
    assert "the curve has no point P99" in refused("take", run, "P99")
    assert "Missing argument 'POINT'" in refused("take", run)
    assert "is not a run (it has no run.json)" in refused("curve", tmp_path / "nowhere")
    assert "is not a run (it has no run.json)" in refused("take", tmp_path / "nowhere", "P1")
    other = tmp_path / "other"
    done("score", *TINY, "--out", other)
    assert "curve.json is missing: make it with smpq curve" in refused("take", other, "P1")
    assert "--engines" in refused("curve", run, "--engines", "0")


def test_a_method_that_does_not_search_is_refused(tmp_path):
    run = tmp_path / "run"
    done("score", *TINY, "--method", "uniform", "--out", run)
    assert "--method uniform chooses by its scores alone" in refused("curve", run)
