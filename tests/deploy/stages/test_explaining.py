"""On the small task of the command line's tests; the values behind it are computed, not made up."""

import itertools
import json
from dataclasses import replace

import pytest
from rich.console import Console

from calib.formats.format import FP32, Format
from deploy.run.settings import Settings
from deploy.stages.explaining import Explanation, explain
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from tests.commands import TINY, done, refused


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("explain") / "run"
    done("score", *TINY, "--out", out)
    done("solve", out, "--budget", "size=0.6x")
    return out


def test_the_contributions_sum_to_what_the_policy_loses(run):
    record = json.loads(done("explain", run, "--evaluations", "64", "--json").out)
    assert record == read(run / "contributions.json")
    rows = record["contributions"]
    assert {row["group"] for row in rows} == {g for g, f in read(run / "policy.json")["policy"].items() if f != "fp32"}
    assert sum(row["value"] for row in rows) == pytest.approx(record["total"], abs=1e-9)
    assert record["total"] < 0
    for row in rows:
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
    assert sorted(itertools.chain(*record["apart"])) == sorted(row["group"] for row in rows)


def test_evaluations_that_do_not_suffice_are_a_user_error(run):
    assert "evaluations" in refused("explain", run, "--evaluations", "3", "--estimator", "permutation")


def test_a_float_policy_has_nothing_to_explain(run):
    before = (run / "policy.json").read_text()
    record = read(run / "policy.json")
    (run / "policy.json").write_text(json.dumps({**record, "policy": dict.fromkeys(record["policy"], "fp32")}))
    message = refused("explain", run)
    (run / "policy.json").write_text(before)
    assert "nothing to explain" in message


def test_the_defaults_grow_with_the_players():
    assert Explanation().budget(10, 400) == 200
    assert Explanation().budget(100, 400) == 800
    assert Explanation(evaluations=3).budget(100, 400) == 3


def test_the_joins_that_the_policy_keeps_in_float_are_part_of_the_explanation(tmp_path):
    settings = Settings("tests.joined_task:task", formats="w8a8,fp32", samples=16, evaluations=12)
    with open_run(tmp_path / "run", Progress(Console(quiet=True)), settings) as workspace:
        (join,) = workspace.space.joins
        integers = workspace.space.uniform(Format.from_text("w8a8"))
        policy = replace(integers, float_joins=frozenset({join.name}))
        value = workspace.evaluator
        assert value(policy) != value(integers)
        record = explain(workspace, policy)
        assert record.total == pytest.approx(value(policy) - value(workspace.space.uniform(FP32)), abs=1e-12)
