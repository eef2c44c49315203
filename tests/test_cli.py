"""The commands one after the other, as a person uses them."""

import json
import multiprocessing
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.latency.steps import StopReason
from deploy.runner.main import run_experiment
from smpq.value.journal import Journal
from smpq.value.value import PolicyValue
from tests.commands import TINY, contents, copy_of, done, refused, smpq
from tests.conftest import ROOT

LAYERS = {"first", "second", "head"}


@pytest.fixture
def run(good_run, tmp_path):
    return copy_of(good_run, tmp_path / "run")


def read(path):
    return json.loads(path.read_text())


def looped(run):
    """Every step of the run's loop."""
    return [step for search in read(run / "loop.json")["searches"] for step in search["steps"]]


def evaluations(run):
    database = sqlite3.connect(run / "journal.sqlite")
    try:
        return dict(database.execute("SELECT policy, value FROM evaluations").fetchall())
    finally:
        database.close()


def test_the_stages_one_by_one(tmp_path):
    out = tmp_path / "run"
    scores = json.loads(done("score", *TINY, "--out", out, "--json").out)
    assert scores == read(out / "scores.json")
    assert set(scores["scores"]) == LAYERS
    known = evaluations(out)
    before = (out / "scores.json").read_bytes()

    solved = [
        json.loads(done("solve", out, "--budget", budget, "--json").out) for budget in ("avg_bits=32", "size=0.3x")
    ]
    assert solved[0]["policy"] != solved[1]["policy"]
    assert set(solved[0]["policy"].values()) == {"fp32"}
    assert read(out / "policy.json")["policy"] == solved[1]["policy"]
    assert (out / "scores.json").read_bytes() == before
    assert known.items() <= evaluations(out).items()

    record = read(out / "policy.json")
    record["policy"]["head"] = "fp32"
    (out / "policy.json").write_text(json.dumps(record))
    assert Path(json.loads(done("export", out, "--json").out)["model"]) == out / "model.ort-cpu.onnx"
    built = json.loads(done("build", out, "--json").out)
    assert {path: kernel["agrees"] for path, kernel in built["kernels"].items()} == dict.fromkeys(LAYERS, True)
    assert "QLinearConv" in built["kernels"]["second"]["kernel"]
    assert "Q" not in built["kernels"]["head"]["kernel"]
    assert set(built["engines"]) == {"engine.ort-cpu.onnx", "engine.float.onnx"}

    measured = json.loads(done("measure", out, "--json").out)
    timed = measured["measurement"]
    low, high = timed["ratio_interval"]
    assert 0 < low <= timed["ratio"] <= high
    assert (
        min(timed["engine_ms"], timed["float_ms"]) > 0
    )  # of times one after the other: how far apart they are is chance
    verified = json.loads(done("verify", out, "--json").out)
    assert list(verified["stages"]) == ["eager", "float", "fake_quant", "onnx", "engine"]
    assert verified["samples"] == 16
    assert verified["stages"]["engine"]["agreement"] >= 0.9

    reported = smpq("report", out, "--json")
    report = json.loads(reported.out)
    assert report == read(out / "report.json")
    assert report["policy"] == record["policy"]
    assert report["engine"] == "engine.ort-cpu.onnx"
    assert report["latency"]["ratio"] == timed["ratio"]
    assert report["accuracy"]["engine"] == verified["stages"]["engine"]["mean"]
    assert report["budget"] == "size=0.3x"
    assert report["met"] is (report["limits"][0]["reached"] <= 0.3)
    assert reported.code == (0 if report["met"] else 1)
    assert "<html" in (out / "report.html").read_text()


def test_json_is_all_there_is_on_standard_output(run, tmp_path):
    commands = [
        ["score", *TINY, "--out", run],
        ["solve", run, "--budget", "size=0.9x"],
        ["export", run],
        ["build", run],
        ["measure", run],
        ["verify", run],
        ["report", run],
        ["bundle", run, tmp_path / "bundle", "--budget", "latency=0.0001x"],
        ["feedback", run, tmp_path / "bundle" / "measurements.json"],
        ["run", *TINY, "--out", run, "--budget", "size=0.9x"],
        ["targets"],
    ]
    for command in commands:
        if command[0] == "feedback":
            run_experiment(tmp_path / "bundle", str)
        result = smpq(*command, "--json")
        assert result.code == (1 if command[0] == "feedback" else 0), result.err  # that budget is out of reach
        assert isinstance(json.loads(result.out), dict)
    text = done("verify", run).out
    assert "fake_quant: " in text
    assert "engine: " in text


def test_quiet_says_nothing_but_the_result(run):
    assert done("verify", run, "--quiet").err == ""


def test_a_bundle_is_carried_away_and_its_measurements_come_back(run, tmp_path):
    bundle = tmp_path / "bundle"
    written = done("bundle", run, bundle, "--budget", "latency=0.0001x").out
    assert f"on the device: python3 runner.pyz; then: smpq feedback {run} measurements.json" in written
    engines = read(bundle / "experiment.json")["candidates"]
    assert f"({len(engines)} engines)" in written
    subprocess.run([sys.executable, "runner.pyz"], cwd=bundle, check=True, capture_output=True)
    result = smpq("feedback", run, bundle / "measurements.json")
    assert result.code == 1, "no engine can be that fast"
    assert f"policy: {run / 'policy.json'} (measured " in result.out
    assert "does not meet the budget" in result.out
    assert len(looped(run)) == len(engines)
    assert (run / "model.ort-cpu.onnx").is_file()
    assert "more engines should be measured" in result.out or "out of reach" in result.out


def test_further_batch_sizes_are_timed(run):
    record = json.loads(done("measure", run, "--batch", "2", "--batch", "5", "--json").out)
    assert [row["batch"] for row in (record["measurement"], *record["batches"])] == [1, 2, 5]
    for row in (record["measurement"], *record["batches"]):
        assert row["throughput"] == pytest.approx(row["batch"] * 1000 / row["engine_ms"])
    lines = done("measure", run, "--batch", "2").out.splitlines()
    assert read(run / "latency.json")["turn"] > record["turn"], "what is known is measured again"
    assert [line.split(":")[0] for line in lines if "x of float [" in line] == ["batch 1", "batch 2"]
    assert lines[-1].startswith("on "), "lines between are remarks, as on a busy machine"


def test_a_budget_out_of_reach_ends_with_the_closest_engine(tmp_path):
    out = tmp_path / "run"
    result = smpq("run", *TINY, "--out", out, "--formats", "w8a8,fp32", "--budget", "latency=0.0001x", "--json")
    assert result.code == 1
    assert f"no more engines: {StopReason.OUT_OF_REACH}" in result.err
    report = json.loads(result.out)
    assert report["met"] is False
    (limit,) = report["limits"]
    assert limit["met"] is False
    assert limit["reached"] == report["latency"]["ratio"]
    assert (out / report["engine"]).is_file()
    assert (out / report["float_engine"]).is_file()
    slowest = {tuple(step["policy"]["policy"].items()): step["measured_interval"][1] for step in looped(out)}
    slowest[tuple(dict.fromkeys(read(out / "policy.json")["policy"], "fp32").items())] = (
        1.0  # the float engine is kept where nothing is faster
    )
    chosen = tuple(read(out / "policy.json")["policy"].items())
    assert slowest[chosen] == min(slowest.values())


def test_a_latency_budget_within_reach_is_met_by_measurement(tmp_path):
    out = tmp_path / "run"
    result = smpq("run", *TINY, "--out", out, "--formats", "w8a8,fp32", "--budget", "latency=20x", "--json")
    report = json.loads(result.out)
    assert result.code == 0
    assert report["met"] is True
    assert set(report["policy"].values()) == {"fp32"}, "nothing needs to be quantised, and float is the most accurate"


@pytest.mark.parametrize("survived", [0, 1, 7])
def test_a_killed_run_goes_on_and_evaluates_nothing_twice(tmp_path, monkeypatch, survived):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done("score", *TINY, "--out", whole)
    add = Journal.add

    def killing(self, fingerprint, policy, value):
        if len(evaluations(killed)) == survived:
            raise KeyboardInterrupt
        add(self, fingerprint, policy, value)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", killing)
        stopped = smpq("score", *TINY, "--out", killed)
    assert stopped.code == 130
    assert "the same command goes on" in stopped.err
    first = evaluations(killed)
    assert len(first) == survived

    fresh = []
    compute = PolicyValue.__call__

    def counted(self, policies):
        fresh.extend(policy.key() for policy in policies)
        return compute(self, policies)

    monkeypatch.setattr(PolicyValue, "__call__", counted)
    done("score", *TINY, "--out", killed)
    assert not set(fresh) & set(first)
    assert len(fresh) == len(set(fresh))
    assert evaluations(killed) == evaluations(whole)
    assert read(killed / "scores.json") == read(whole / "scores.json")


def test_a_run_killed_between_stages_goes_on(run, good_run):
    for name in ("engine.ort-cpu.onnx", "build.json", "latency.json", "verify.json", "report.json", "report.html"):
        (run / name).unlink()
    before = evaluations(run)
    done("run", *TINY, "--budget", "size=0.9x", "--out", run)
    assert evaluations(run) == before
    for name in ("scores.json", "policy.json", "model.float.onnx", "model.ort-cpu.onnx", "engine.ort-cpu.onnx"):
        assert (run / name).read_bytes() == (good_run / name).read_bytes(), name
    assert set(contents(run)) == set(contents(good_run))


def test_a_run_leaves_no_temporary_files(good_run):
    assert list(good_run.rglob(".*")) == []
    assert sorted(path.name for path in good_run.iterdir() if path.is_dir()) == ["candidates", "device"]


USER_TASK = """
import tests.tiny_task

class Mine(tests.tiny_task.Tiny):
    def metric(self, output, target):
        return 2 * super().metric(output, target)
"""


def test_workers_change_no_number_and_may_change_from_command_to_command(tmp_path, monkeypatch):
    """A task of the current directory, judged by a metric of its own: the workers must import it too."""
    (tmp_path / "my_task.py").write_text(USER_TASK)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    options = ["--task", "my_task:Mine", "--evaluations", "12", "--samples", "16", "--value", "metric"]
    done("score", *options, "--out", "here")
    done("score", *options, "--out", "there", "--workers", "2", "--memory-limit", "50")
    here, there = Path("here"), Path("there")
    assert read(there / "scores.json") == read(here / "scores.json")
    assert evaluations(there) == evaluations(here)
    resources = read(there / "run.json")["resources"]
    assert (resources["workers"], resources["ray"], resources["memory_limit_mb"]) == (2, None, 50.0)
    (there / "scores.json").unlink()
    before = evaluations(there)
    done("score", *options, "--out", "there")
    assert evaluations(there) == before
    assert read(there / "scores.json") == read(here / "scores.json")
    assert read(there / "run.json")["resources"]["workers"] is None
    assert multiprocessing.active_children() == []


def test_a_task_that_workers_cannot_get_is_refused_before_anything_is_done(tmp_path):
    task = ["--task", "tests.tiny_task:scripted", "--out", tmp_path / "run", "--workers", "2"]
    message = refused("score", *task, "--value", "metric")
    assert "the task cannot be sent to other processes" in message
    assert not (tmp_path / "run").exists()
    done("score", *task, "--evaluations", "12", "--samples", "16")  # KL needs no task


def test_two_processes_on_one_run(run):
    command = [
        sys.executable,
        "-c",
        (
            f"from pathlib import Path; from deploy.run.directory import Run; r = Run(Path({str(run)!r})); r.lock(); "
            "print(1, flush=True); input()"
        ),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "1\n"
        before = contents(run)
        for arguments in (["solve", run, "--budget", "avg_bits=8"], ["score", *TINY, "--out", run]):
            assert f"another process works on {run}" in refused(*arguments)
        assert contents(run) == before
        other.kill()
    done("score", *TINY, "--out", run)


def test_another_rounding_is_told_and_its_values_are_not_mixed(run):
    before = evaluations(run)
    record = read(run / "calibration.json")
    (run / "calibration.json").write_text(json.dumps({**record, "digest": "0" * 64, "threads": 7}))
    result = done("solve", run, "--budget", "avg_bits=8")
    assert "the rounded weights or the ranges differ from those that this run began with" in result.err
    assert "7 then" in result.err
    (run / "calibration.json").write_text(json.dumps(record))
    assert "differ" not in done("solve", run, "--budget", "avg_bits=8").err
    assert before.items() <= evaluations(run).items()
