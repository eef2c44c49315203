"""Policies on their way to a device: lowered once, named by content, with one batch of calibration data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs
from rich.console import Console

from calib.errors import UserError
from calib.formats.format import FP32, Format
from deploy.latency import bench
from deploy.latency.candidates import CANDIDATES
from deploy.lowering.onnx_files import sha256
from deploy.run.float_onnx import export_float_model
from deploy.run.settings import Settings
from deploy.runner.protocol import Protocol
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from tests.deploy.board import FASTER, Board

W8A8 = Format.from_text("w8a8")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    settings = Settings("tests.tiny_task:task", formats="w8a8,fp32", samples=16, seed=3)
    with open_run(tmp_path_factory.mktemp("measuring") / "run", Progress(Console(quiet=True)), settings) as made:
        export_float_model(made)
        yield made


def test_a_candidate_is_named_by_its_content_and_made_once(workspace):
    policy = workspace.space.uniform(W8A8)
    first = workspace.candidates.candidate(policy)
    written = first.model.stat().st_mtime_ns
    assert first.model.parent == workspace.run.file(CANDIDATES)
    assert first.name == sha256(first.model)[:16]
    assert replace(workspace).candidates.candidate(policy) == first, "in another process"
    assert first.model.stat().st_mtime_ns == written
    other = workspace.candidates.candidate(policy.with_format("head", FP32))
    assert other.name != first.name
    assert workspace.candidates.float_candidate(1).name not in (first.name, other.name)


@pytest.mark.parametrize("batch", [1, 5, 16, 20])
def test_inputs_are_calibration_samples_repeated_where_there_are_too_few(workspace, batch):
    experiment = workspace.bench.experiment([], Protocol(), batch)
    samples = np.concatenate([each.inputs[0].numpy() for each in workspace.batches])
    (array,) = experiment.inputs.values()
    assert array.shape == (batch, 1, 6, 6)
    for index in range(batch):
        np.testing.assert_array_equal(array[index], samples[index % 16])


def test_an_experiment_says_what_it_is_about(workspace):
    experiment = workspace.bench.experiment([workspace.candidates.candidate(workspace.space.uniform(W8A8))], Protocol())
    assert (experiment.runtime, experiment.batch, experiment.seed) == ("onnxruntime", 1, 3)
    assert experiment.fingerprint == workspace.fingerprint
    assert experiment.label == "tests.tiny_task:task on ort-cpu"
    assert list(experiment.float_.settings["providers"]) == ["CPUExecutionProvider"]


def test_an_engine_is_timed_and_remembered(workspace):
    policy = workspace.space.uniform(W8A8)
    observation = workspace.bench.observe(policy)
    assert observation.policy == policy
    assert observation.ratio > 0
    assert workspace.bench.observe(policy) == observation, "not timed again"
    assert workspace.bench.float_ms() > 0


class Telling(Board):
    """A board that says something else of each result: `change` is given the experiment, its number and the result."""

    def __init__(self, change):
        super().__init__(FASTER)
        self.change = change

    def measure(self, experiment, announce=None):
        results = super().measure(experiment, announce)
        return self.keep(experiment, [self.change(experiment, len(self.experiments), each) for each in results])


def unsure(width):
    """Return a board whose quick measurements have an interval that reaches `width` to both sides."""

    def change(experiment, _, result):
        wide = (result.ratio - width, result.ratio + width)
        return result if experiment.protocol == bench.THOROUGH else structs.replace(result, ratio_interval=wide)

    return Telling(change)


@pytest.mark.parametrize(("width", "times"), [(0.001, 1), (0.1, 1), (0.2, 2)])
def test_an_engine_that_may_lie_on_either_side_of_the_limit_is_timed_again(workspace, width, times):
    board = unsure(width)
    observation = replace(workspace, device=board).bench.observe(workspace.space.uniform(W8A8), 0.5)
    assert (len(board.experiments), observation.ratio) == (times, pytest.approx(0.65))
    assert (board.experiments[-1].protocol == bench.THOROUGH) == (times == 2)


@pytest.mark.parametrize(
    ("limit", "turns"), [("0.66x", 1), ("0.6505x", 3), ("0.649x", 1), ("1.301ms", 3), ("1.4ms", 1), (None, 1)]
)
def test_more_rounds_are_made_where_only_chance_decides(workspace, limit, turns):
    board = Board(FASTER)
    candidate = workspace.candidates.candidate(workspace.space.uniform(W8A8))
    budget = None if limit is None else Budget.from_text(f"latency={limit}").limit("latency")
    result = replace(workspace, device=board).bench.time_finally(candidate, limit=budget)
    assert [experiment.seed for experiment in board.experiments] == [3, 4, 5][:turns], "one that is not known yet"
    assert {experiment.protocol for experiment in board.experiments} == {bench.FINAL}
    assert result.ratio == pytest.approx(0.65)
    assert len(result.rounds_ms) == len(result.float_rounds_ms) == 15 * turns


def test_what_is_timed_again_is_timed_anew(workspace):
    board, policy = unsure(0.2), workspace.space.uniform(W8A8)
    observing = replace(workspace, device=board).bench
    observing.observe(policy, 0.5)
    observing.observe(policy, 0.5, again=True)
    asked = [(experiment.protocol, experiment.seed) for experiment in board.experiments]
    assert [protocol for protocol, _ in asked] == [bench.QUICK, bench.THOROUGH, bench.THOROUGH]
    assert len(set(asked)) == 3, "a device would answer what is asked twice from what it knows"


def test_an_engine_is_timed_again_in_turns_that_the_device_does_not_know(workspace):
    board = Board(FASTER)
    candidate = workspace.candidates.candidate(workspace.space.uniform(W8A8))
    timing, limit = replace(workspace, device=board).bench, Budget.from_text("latency=0.6505x").limit("latency")
    timing.time_finally(candidate, limit=limit)
    assert timing.fresh_turn(candidate) == len(board.experiments) == 3
    result = timing.time_finally(candidate, limit=limit, first=3)
    assert [experiment.seed for experiment in board.experiments] == [3, 4, 5, 6, 7, 8]
    assert len(result.rounds_ms) == 45


def neighboured(turns):
    """Return a board with a neighbour that makes the intervals of the first `turns` measurements wider."""

    def change(_, number, result):
        wide = (result.ratio / 1.5, result.ratio * 1.5)
        return result if number > turns else structs.replace(result, slowdown=1.5, ratio_interval=wide)

    return Telling(change)


def neighboured_but(quiet):
    """Return a board with a neighbour that leaves it alone in one measurement."""

    def change(_, number, result):
        wide = (result.ratio / 1.5, result.ratio * 1.5)
        return result if number == quiet else structs.replace(result, slowdown=1.5, ratio_interval=wide)

    return Telling(change)


@pytest.mark.parametrize(
    ("limit", "disturbed", "turns"), [("0.6x", 1, 2), ("0.6x", 2, 2), ("0.7x", 9, 2), ("0.4x", 9, 1), ("1.0x", 9, 1)]
)
def test_other_work_does_not_decide_whether_a_budget_is_met(workspace, limit, disturbed, turns):
    board = neighboured(disturbed)
    candidate = workspace.candidates.candidate(workspace.space.uniform(W8A8))
    budget = Budget.from_text(f"latency={limit}").limit("latency")
    result = replace(workspace, device=board).bench.time_finally(candidate, limit=budget)
    assert len(board.experiments) == turns
    assert (result.slowdown == 1.5) == (disturbed >= turns)


@pytest.mark.parametrize("quiet", [1, 2, 3])
def test_any_quiet_measurement_of_a_search_counts_where_the_thorough_one_was_disturbed(workspace, quiet):
    board, policy = neighboured_but(quiet), workspace.space.uniform(W8A8)
    timing = replace(workspace, device=board).bench
    timing.observe(policy, 0.7)
    timing.observe(policy, 0.7, again=True)
    observed = len(board.experiments)
    limit = Budget.from_text("latency=0.7x").limit("latency")
    result = timing.time_finally(workspace.candidates.candidate(policy), limit=limit)
    assert result.slowdown == 1.0
    assert len(board.experiments) == observed + 1, "what is known is not timed once more"


def test_an_engine_that_cannot_be_timed(workspace):
    board = Board(FASTER, lambda _: ("no kernel", []))
    candidate = workspace.candidates.candidate(workspace.space.uniform(W8A8))
    with pytest.raises(UserError, match="the engine cannot be timed: no kernel"):
        replace(workspace, device=board).bench.time_finally(candidate)


def test_a_damaged_model_is_no_candidate(workspace, tmp_path):
    before = set(workspace.run.file(CANDIDATES).iterdir())
    (tmp_path / "cut.onnx").write_bytes(workspace.candidates.float_candidate(1).model.read_bytes()[:500])
    with pytest.raises(UserError, match=r"cut\.onnx cannot be read as an ONNX model"):
        workspace.candidates.kept(tmp_path / "cut.onnx")
    assert set(workspace.run.file(CANDIDATES).iterdir()) == before


def test_a_directory_that_cannot_be_written(workspace, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deploy.latency.candidates.copy_model", full)
    with pytest.raises(UserError, match=r"cannot write .*candidates: the disk is full"):
        workspace.candidates.candidate(workspace.space.uniform(W8A8).with_format("first", FP32))


def test_a_candidate_with_other_content_is_made_again(workspace):
    policy = workspace.space.uniform(W8A8)
    made = workspace.candidates.candidate(policy).model
    content = made.read_bytes()
    made.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert workspace.candidates.candidate(policy).model == made
    assert made.read_bytes() == content
