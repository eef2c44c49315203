"""The loop with a device that answers; a small network with layers of known cost."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from calib.formats.format import FP32
from deploy.files.loop import LoopFile, StepRow
from deploy.latency.history import steps_for
from deploy.latency.steps import StopReason
from deploy.run.directory import Run
from deploy.run.settings import Settings
from deploy.stages.choosing import search
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from tests.deploy.board import FASTER, SLOWER, Board


def read(file: Path):
    return json.loads(file.read_text())


def looped(workspace) -> list[StepRow]:
    """Every step of every search, the first one first."""
    return [step for search in workspace.run.read(LoopFile).searches for step in search.steps]


def test_a_device_that_answers_is_asked_once_for_each_engine(workspace):
    def refuses(integers):
        return ("no kernel", ["head/weight/DQ"]) if "head" in integers else None

    budget = Budget.from_text("latency=0.75x")
    first = Board(FASTER, refuses, gives_up_after=3)
    with pytest.raises(KeyboardInterrupt):
        search(replace(workspace, device=first), budget)
    second = Board(FASTER, refuses)
    solution = search(replace(workspace, device=second), budget)
    assert solution.outcome.met
    assert solution.policy["head"] == FP32
    assert len(first.asked) == 3
    assert not set(first.asked) & set(second.asked)
    assert len(second.asked) == len(set(second.asked))
    assert {refusal.blamed for refusal in workspace.observations.refusals()} == {
        (("head", workspace.space.formats["head"][0]),)
    }
    third = Board(FASTER, refuses)
    assert search(replace(workspace, device=third), budget).policy == solution.policy
    assert third.asked == []


class Impatient(Progress):
    """Has enough once a device was asked so often."""

    def __init__(self, device, engines):
        super().__init__(Console(quiet=True))
        self._device, self._engines = device, engines

    def enough(self):
        return len(self._device.asked) >= self._engines


def test_a_search_that_nobody_waits_for_ends_with_the_best_and_the_next_one_goes_on(workspace):
    budget, whole = Budget.from_text("latency=0.75x"), Board(FASTER)
    best = search(replace(workspace, device=whole, run=copied(workspace.run, "whole")), budget).policy
    first, second = Board(FASTER), Board(FASTER)
    hurried = search(replace(workspace, device=first, progress=Impatient(first, 2)), budget)
    assert len(first.asked) == 2
    assert hurried.stop_reason == StopReason.EARLY
    assert search(replace(workspace, device=second), budget).policy == best
    assert not set(first.asked) & set(second.asked)
    assert len(first.asked) + len(second.asked) == len(whole.asked)


def copied(run, name):
    path = run.path.with_name(name)
    shutil.copytree(run.path, path)
    return Run(path)


def test_another_machine_is_asked_anew(workspace):
    budget = Budget.from_text("latency=0.75x")
    search(replace(workspace, device=Board(FASTER)), budget)
    first = workspace.observations.engines("a board")
    other = Board(SLOWER)
    other.describe = lambda: "another board"
    solution = search(replace(workspace, device=other), budget)
    assert other.asked
    assert set(solution.policy.formats.values()) == {FP32}
    assert workspace.observations.engines("a board") == first, "what another machine has measured stays"
    again = Board(FASTER)
    search(replace(workspace, device=again), budget)
    assert again.asked == []


@pytest.mark.parametrize("stopped_after", [1, 2, 4])
def test_a_search_that_was_stopped_makes_the_decisions_that_it_would_have_made(workspace, tmp_path, stopped_after):
    budget = Budget.from_text("latency=0.75x")
    shutil.copytree(workspace.run.path, tmp_path / "other")
    undisturbed = replace(workspace, run=Run(tmp_path / "other"), device=Board(FASTER))
    search(undisturbed, budget)
    with pytest.raises(KeyboardInterrupt):
        search(replace(workspace, device=Board(FASTER, gives_up_after=stopped_after)), budget)
    (begun,) = workspace.run.read(LoopFile).searches
    assert len(begun.steps) == stopped_after
    assert begun.outcome is None
    solution = search(replace(workspace, device=Board(FASTER)), budget)
    assert read(workspace.run.file("loop.json")) == read(tmp_path / "other" / "loop.json")
    assert solution.policy == read_policy(undisturbed)


def test_searches_for_other_budgets_are_kept(workspace):
    device = Board(FASTER)
    search(replace(workspace, device=device), Budget.from_text("latency=0.75x"))
    (first,) = workspace.run.read(LoopFile).searches
    search(replace(workspace, device=device), Budget.from_text("latency=0.95x"))
    kept, without = workspace.run.read(LoopFile).searches
    assert kept == first
    assert (without.budget, without.steps) == ("latency=0.95x", ()), "what needed no engine came to something as well"
    other = Board(FASTER)
    other.describe = lambda: "another board"
    search(replace(workspace, device=other), Budget.from_text("latency=0.45x"))
    *kept, second = workspace.run.read(LoopFile).searches
    assert kept == [first, without]
    assert (second.budget, second.machine) == ("latency=0.45x", "another board")
    assert steps_for(workspace.run.read(LoopFile), "latency=0.75x") == list(first.steps)


def test_the_outcome_is_judged_on_samples_that_the_search_has_not_used(tmp_path):
    settings = Settings("tests.tiny_task:exacting", formats="w8a8,fp32", samples=8, evaluations=12)
    with open_run(tmp_path / "run", Progress(Console(quiet=True)), settings) as opened:
        workspace = replace(opened, device=Board(FASTER))
        assert workspace.unseen is not None
        solution = search(workspace, Budget.from_text("latency=0.95x"))
    record = read(tmp_path / "run" / "loop.json")["searches"][-1]["outcome"]
    rows = record["finalists"]
    assert len(rows) > 1
    assert [row["unseen_value"] for row in rows] == sorted((row["unseen_value"] for row in rows), reverse=True)
    assert {name: str(chosen) for name, chosen in solution.policy.formats.items()} == record["policy"]["policy"]
    assert rows[0]["policy"] == record["policy"]
    assert solution.path == (("best finalist on other samples", record["value"]),)
    for row, finalist in zip(rows, solution.outcome.finalists, strict=True):
        assert row["unseen_value"] == workspace.unseen(finalist.policy)
        assert row["value"] == workspace.evaluator(finalist.policy)
