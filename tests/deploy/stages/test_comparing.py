"""`smpq compare` on runs of a small task."""

from __future__ import annotations

import json
import shutil

import pytest
from msgspec.structs import replace

from deploy.run.settings import Settings
from deploy.stages.choosing import search
from deploy.stages.comparing import compare
from deploy.stages.run_all import open_run
from deploy.stages.scoring import score
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from tests.commands import contents, done, refused

TASK = Settings("tests.tiny_task:task", "simulate", formats="w4a8,w8a8,fp32", rounding="nearest", samples=16)
BUDGET, BUDGET_OF_HALVES = Budget.from_text("avg_bits=6"), Budget.from_text("avg_bits=10")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = [tmp_path_factory.mktemp("compared") / name for name in ("random", "largest-first")]
    for path in made:
        with open_run(path, Progress(), TASK) as workspace:
            search(workspace, BUDGET, score(workspace, method=path.name))
    return made


def test_two_runs(runs):
    before = [contents(run) for run in runs]
    found = compare(runs)
    one, other = found.runs
    assert (one.method, other.method) == ("random", "largest-first")
    assert one.budget == str(BUDGET)
    assert one.avg_bits <= 6
    assert (one.accuracy, one.latency, one.seconds, one.data_free) == (None, None, None, False)
    assert [layer.path for layer in found.layers] == ["first", "second", "head"]
    (pair,) = found.scores
    assert (pair.first, pair.second, pair.moves) == (0, 1, 6)
    again = compare([runs[0], runs[0]]).scores[0]
    assert (again.spearman, again.within) == (1.0, 1.0)
    assert [contents(run) for run in runs] == before, "no run is changed"


def test_a_float_format_that_is_not_the_reference_has_scores(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("halves") / "run"
    with open_run(path, Progress(), replace(TASK, formats="w8a8,fp16,fp32")) as workspace:
        search(workspace, BUDGET_OF_HALVES, score(workspace, method="largest-first"))
    assert compare([path, path]).scores[0].moves == 6
    assert compare([path, runs[0]]).scores[0].moves == 3, "w8a8 in three layers"


def test_the_command_prints_and_draws(runs, tmp_path):
    result = done("compare", *runs, "--picture", tmp_path / "c.svg")
    assert result.out.startswith("2 runs of one network, 3 layers, simulate, avg_bits=6\n")
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    record = json.loads(done("compare", *runs, "--json").out)
    assert [run["method"] for run in record["runs"]] == ["random", "largest-first"]


def test_a_picture_goes_where_a_file_can_be(runs, tmp_path):
    message = refused("compare", *runs, "--picture", tmp_path / "nowhere" / "c.svg")
    assert f"--picture: {tmp_path / 'nowhere'} is no directory that is there: make it" in message
    assert f"{tmp_path} is a directory: name a file in it" in refused("compare", *runs, "--picture", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compared(runs, tmp_path, monkeypatch):
    assert "smpq compare needs two runs or more" in refused("compare", runs[0])
    assert "is not a run (it has no run.json)" in refused("compare", runs[0], tmp_path)
    unplanned = shutil.copytree(runs[1], tmp_path / "unplanned")
    (unplanned / "policy.json").unlink()
    assert "policy.json is missing: make it with smpq solve" in refused("compare", runs[0], unplanned)
    retrained = shutil.copytree(runs[1], tmp_path / "retrained")
    record = json.loads((retrained / "run.json").read_text())
    record["fingerprint"]["weights"] = "0" * 64
    (retrained / "run.json").write_text(json.dumps(record))
    assert "are runs of different networks: their weights differ" in refused("compare", runs[0], retrained)
    other = shutil.copytree(runs[1], tmp_path / "other")
    for name in ("space.json",):
        text = (other / name).read_text().replace('"head"', '"tail"').replace("head: ", "tail: ")
        (other / name).write_text(text)
    assert refused("compare", runs[0], other)
