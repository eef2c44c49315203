"""`smpq run` with a latency budget, killed at any moment: started again it ends as if it had not been.

The thorough measurements overrule what three searches came to, so there are four to be killed in. The first one ends
because it has measured as many engines as it may, and the last one needs no further engine.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from calib.files.storage import FileRecord
from deploy.devices.base import Result
from deploy.files.engine import TimingRow
from deploy.files.loop import LoopFile
from deploy.latency.observations import Observations
from deploy.latency.observed import Observation, Refusal
from deploy.latency.steps import LoopSettings
from deploy.run.directory import Run
from deploy.run.workspace import Workspace
from deploy.stages import looping, run_all
from deploy.stages.making import timed_row
from deploy.stages.run_all import run_stages
from smpq.methods import DEFAULT_METHOD
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from tests.deploy.board import LAYERS, figures, nothing

BUDGET = Budget.from_text("latency=0.65x")
COSTS = {"first": -0.1, "second": -0.3, "head": -0.1}
FILES = ("loop.json", "policy.json", "observations.json")


class Killed(BaseException):
    """The process is gone."""


class Power:
    """Is told the moments of a run: before and after the device has noted a result, before a file is written,
    and at the end. It fails at the one that is given, the first or a later time.
    """

    def __init__(self, fails_at: tuple[str, int]) -> None:
        self._moment, self._left = fails_at

    def __call__(self, moment: str) -> None:
        self._left -= moment == self._moment
        if self._left == 0 and moment == self._moment:
            raise Killed(moment)


class Device:
    """A board that notes what it has measured, and engines that it finds slower when it measures them thoroughly."""

    machine = "a board"

    def __init__(self, observations: Observations, notes: dict[tuple[str, bool], Result], power: Power) -> None:
        self._observations, self._notes, self._power = observations, notes, power

    def observe(self, policy: Policy, _limit: float, *, again: bool) -> Observation | Refusal:
        return self._observations.keep([(policy, self._ask(policy, thorough=again))], self.machine)[0]

    def thoroughly(self, policy: Policy) -> TimingRow:
        result = self._ask(policy, thorough=True)
        self._observations.keep([(policy, result)], self.machine)
        return timed_row(result)

    def _ask(self, policy: Policy, *, thorough: bool) -> Result:
        key = policy.key(), thorough
        how = " thoroughly" if thorough else ""
        self._power(f"asked{how}")
        if key not in self._notes:
            integers = [layer for layer in LAYERS if str(policy[layer]) == "w8a8"]
            about = {"key": "0" * 16, "name": "0" * 16, "batch": 1}
            costs = {**COSTS, "second": COSTS["second"] + 0.2 * thorough}
            self._notes[key] = msgspec.convert({**about, **figures(integers, costs, nothing)}, Result)
        self._power(f"noted{how}")
        return self._notes[key]


class Job:
    """The job in one run directory; engines are timed on a board that is none, and neither made nor verified."""

    def __init__(self, workspace: Workspace, path: Path) -> None:
        shutil.copytree(workspace.run.path, path)
        self.run, self.notes = Run(path), {}
        self._workspace = workspace

    def start(self, fails_at: tuple[str, int] = ("never", 1)) -> None:
        """Run until the end, or until the power fails."""
        power, workspace = Power(fails_at), replace(self._workspace, run=self.run)
        device = workspace.__dict__["bench"] = Device(workspace.observations, self.notes, power)
        write = Run.write

        def writing(run: Run, record: FileRecord) -> None:
            power(f"write {record.NAME}")
            write(run, record)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Run, "write", writing)
            patched.setattr(looping, "LoopSettings", partial(LoopSettings, measurements=2, designed=2))
            for stage in (looping, run_all):
                patched.setattr(stage, "export_float_model", lambda _workspace: None)
            patched.setattr(run_all, "_make", lambda _workspace, policy, _budget: device.thoroughly(policy))
            patched.setattr(run_all, "write_stability", lambda *_: None)
            patched.setattr(run_all, "verify", lambda _workspace, _policy: power("verify"))
            patched.setattr(run_all, "write_reports", lambda _run, _progress: None)
            run_stages(workspace, BUDGET, None, DEFAULT_METHOD)

    def contents(self) -> dict[str, bytes]:
        return {name: self.run.file(name).read_bytes() for name in FILES}


def test_a_job_that_is_killed_again_and_again_ends_as_one_that_was_not(scored: Workspace, tmp_path: Path) -> None:
    whole, job = Job(scored, tmp_path / "whole"), Job(scored, tmp_path / "run")
    whole.start()
    searches = whole.run.read(LoopFile).searches
    assert [(len(each.steps), each.stands) for each in searches] == [(2, False), (1, False), (2, False), (0, True)]
    for moment in (
        ("write observations.json", 2),  # the device has told the time of an engine, and the run does not know it
        ("write policy.json", 1),  # the search has ended, and its engine is not measured thoroughly yet
        ("noted thoroughly", 1),  # the device has the answer, and the run does not
        ("write loop.json", 2),  # the run has it, and has not decided yet
        ("write loop.json", 3),  # the search was overruled, and the next one has not begun
        ("noted", 1),
        ("asked thoroughly", 1),
        ("noted", 1),
        ("asked thoroughly", 2),
        ("verify", 1),
    ):
        with pytest.raises(Killed, match=moment[0]):
            job.start(moment)
    job.start()
    assert job.contents() == whole.contents()
    assert job.notes == whole.notes, "nothing else is measured"
