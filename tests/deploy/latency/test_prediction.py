"""A prediction knows nothing of the measurement that it is compared with."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from rich.console import Console

from calib.formats.format import FP32
from deploy.files.engine import LatencyFile
from deploy.files.loop import LoopFile
from deploy.latency.observations import latency_model
from deploy.latency.prediction import Prediction, prediction
from deploy.run.directory import Run
from deploy.run.settings import Settings
from deploy.stages.choosing import search
from deploy.stages.making import build, export, measure
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from tests.deploy.board import FASTER, Board
from tests.deploy.latency.test_observations import W8A8, measured

BOARD = "a board"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    settings = Settings("tests.tiny_task:exacting", formats="w8a8,fp32", samples=16, evaluations=12)
    with open_run(tmp_path_factory.mktemp("prediction") / "run", Progress(Console(quiet=True)), settings) as workspace:
        yield workspace


@pytest.fixture
def workspace(task, tmp_path):
    shutil.copytree(task.run.path, tmp_path / "run")
    return replace(task, run=Run(tmp_path / "run"), device=Board(FASTER))


def integers(workspace, *names):
    (policy, _) = measured(workspace, *names)
    return policy


def predicted(workspace, policy, machine=BOARD):
    return prediction(workspace.run, workspace.observations, workspace.edges, policy, machine)


def keep(workspace, *found):
    workspace.observations.keep(found, BOARD)


def test_an_earlier_measurement_of_the_policy_changes_nothing(workspace):
    policy = integers(workspace, "first", "second")
    assert predicted(workspace, policy) is None
    keep(workspace, measured(workspace, "first", "second", ratio=0.2, ratio_interval=[0.199, 0.201]))
    assert predicted(workspace, policy) is None, "no other engine is known"
    keep(workspace, measured(workspace, "first"), measured(workspace, "second"))
    found = predicted(workspace, policy)
    workspace.run.file("observations.json").unlink()
    keep(workspace, measured(workspace, "first"), measured(workspace, "second"))
    ratio, error = latency_model(workspace.observations, workspace.edges, print).predict(policy)
    assert found == Prediction(ratio, (ratio - 1.96 * error, ratio + 1.96 * error), 2)
    assert found == predicted(workspace, policy)
    assert found.ratio > 0.4
    assert predicted(workspace, policy, "another board") is None
    assert predicted(workspace, workspace.space.uniform(FP32)) is None, "the float engine's is known to be 1"


def test_measuring_twice_gives_the_same_prediction(workspace):
    keep(workspace, measured(workspace, "first"), measured(workspace, "head"))
    policy = integers(workspace, "first", "second")
    export(workspace, policy)
    build(workspace, policy)
    once, twice = measure(workspace, policy), measure(workspace, policy)
    assert once.predicted_ratio is not None
    for name in ("predicted_ratio", "predicted_interval", "predicted_from"):
        assert getattr(once, name) == getattr(twice, name) == getattr(workspace.run.read(LatencyFile), name)
    assert once.predicted_from == 2
    assert twice.measurement.ratio == pytest.approx(0.6)


def test_the_loops_own_prediction_is_kept(workspace):
    outcome = search(workspace, Budget.from_text("latency=0.8x")).outcome
    (row,) = workspace.run.read(LoopFile).searches
    assert row.machine == BOARD
    assert [step.predicted_from for step in row.steps] == list(range(len(row.steps)))
    for step, kept in zip(outcome.steps, row.steps, strict=True):
        found = predicted(workspace, step.proposal.policy)
        if kept.predicted_from:
            interval = (kept.predicted_interval.low, kept.predicted_interval.high)
            assert found == Prediction(kept.predicted, interval, kept.predicted_from)
        else:
            assert found.engines == len(row.steps) - 1, (
                "the first engine was predicted from nothing, so the others are asked"
            )
        assert predicted(workspace, step.proposal.policy, "another board") is None


def test_policies_with_a_layer_at_other_bits_are_others(workspace):
    keep(workspace, measured(workspace, "first"))
    policy = integers(workspace, "first").with_format("head", W8A8)
    assert predicted(workspace, policy).engines == 1
