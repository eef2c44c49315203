"""`smpq run` with a latency budget, killed at any moment: started again it ends as if it had not been.

The thorough measurements overrule what two searches came to, so there are three to be killed in; the last one of them
needs no further engine.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from calib.files.storage import FileRecord
from deploy.devices.base import Result
from deploy.files.engine import TimingRow
from deploy.files.loop import LoopFile
from deploy.latency.observations import Observations
from deploy.latency.observed import Observation, Refusal
from deploy.run.directory import Run
from deploy.run.workspace import Workspace
from deploy.stages import choosing, looping, run_all
from deploy.stages.making import timed_row
from deploy.stages.run_all import run_stages
from smpq.methods import DEFAULT_METHOD
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from tests.deploy.board import LAYERS, figures, nothing

BUDGET = Budget.from_text("latency=0.85x")
COSTS = {"first": -0.1, "second": -0.3, "head": -0.06}
FILES = ("loop.json", "policy.json", "observations.json")


class Killed(BaseException):
    """The process is gone."""


class Power:
    """Counts the moments of a run: before and after the device has noted a result, and before a file is written. It
    fails at the one that is given.
    """

    def __init__(self, fails_at: int | None = None) -> None:
        self.moments: list[str] = []
        self._fails_at = fails_at

    def __call__(self, moment: str) -> None:
        if len(self.moments) == self._fails_at:
            raise Killed(moment)
        self.moments.append(moment)


class Device:
    """A board that notes what it has measured, and engines that it finds slower when it measures them thoroughly."""

    machine = "a board"

    def __init__(self, observations: Observations, notes: dict[tuple[str, bool], Result], power: Power) -> None:
        self._observations, self._notes, self._power = observations, notes, power

    def observe(self, policy: Policy, _limit: float) -> Observation | Refusal:
        return self._observations.keep([(policy, self._ask(policy, thorough=False))], self.machine)[0]

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
            costs = {**COSTS, "second": COSTS["second"] + 0.22 * thorough}
            self._notes[key] = msgspec.convert({**about, **figures(integers, costs, nothing)}, Result)
        self._power(f"noted{how}")
        return self._notes[key]


class Job:
    """The job in one run directory; engines are timed on a board that is none, and neither made nor verified."""

    def __init__(self, workspace: Workspace, path: Path) -> None:
        shutil.copytree(workspace.run.path, path)
        self.run, self.notes = Run(path), {}
        self._workspace = workspace

    def start(self, fails_at: int | None = None) -> list[str]:
        """Run until the end, or until the power fails; returns the moments that there were."""
        power, workspace = Power(fails_at), replace(self._workspace, run=self.run)
        device = workspace.__dict__["bench"] = Device(workspace.observations, self.notes, power)
        write = Run.write

        def writing(run: Run, record: FileRecord) -> None:
            power(f"write {record.NAME}")
            write(run, record)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Run, "write", writing)
            patched.setattr(looping, "export_float_model", lambda _workspace: None)
            patched.setattr(run_all, "_make", lambda _workspace, policy: device.thoroughly(policy))
            patched.setattr(choosing, "write_stability", lambda *_: None)
            patched.setattr(run_all, "verify", lambda _workspace, _policy: power("verify"))
            patched.setattr(run_all, "write_reports", lambda _run, _progress: None)
            run_stages(workspace, BUDGET, None, DEFAULT_METHOD)
        return power.moments

    def contents(self) -> dict[str, bytes]:
        return {name: self.run.file(name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def undisturbed(scored: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, list[str]]:
    """A job that nothing stopped, and its moments. To be read, not changed."""
    job = Job(scored, tmp_path_factory.mktemp("undisturbed") / "run")
    return job, job.start()


def test_three_searches_and_the_engine_of_the_last(undisturbed: tuple[Job, list[str]]) -> None:
    job, moments = undisturbed
    searches = job.run.read(LoopFile).searches
    assert [(len(search.steps), search.stands) for search in searches] == [(5, False), (1, False), (0, True)]
    assert moments[-1] == "verify"


@pytest.mark.parametrize(
    ("moment", "occurrence"),
    [
        ("write policy.json", 1),  # a search has ended, and its engine is not measured thoroughly yet
        ("noted thoroughly", 1),  # the device has the answer, and the run does not
        ("write loop.json", 8),  # the run has it, and has not decided yet
        ("write loop.json", 9),  # it was overruled, and the next search has not begun
        ("asked", 6),
        ("write policy.json", 3),
        ("verify", 1),
    ],
)
def test_a_job_that_was_killed_at_any_moment_ends_as_one_that_was_not(
    scored: Workspace, undisturbed: tuple[Job, list[str]], tmp_path: Path, moment: str, occurrence: int
) -> None:
    whole, moments = undisturbed
    job, at = Job(scored, tmp_path / "run"), [index for index, each in enumerate(moments) if each == moment]
    with pytest.raises(Killed, match=moment):
        job.start(at[occurrence - 1])
    assert moment == "verify" or job.notes.keys() < whole.notes.keys() or "policy" in moment
    job.start()
    assert job.contents() == whole.contents()
    assert job.notes == whole.notes, "nothing else is measured"


def test_sweep(scored, tmp_path, undisturbed):
    whole, moments = undisturbed
    print(list(enumerate(moments)))
    bad = []
    for at in range(len(moments)):
        job = Job(scored, tmp_path / str(at))
        with pytest.raises(Killed):
            job.start(at)
        job.start()
        ok = {k: v == whole.contents()[k] for k, v in job.contents().items()}, job.notes == whole.notes
        if not (all(ok[0].values()) and ok[1]):
            bad.append((at, moments[at], ok))
    print(*bad, sep="\n")
    assert not bad
