"""How accurate engines are on the evaluation data, each compared with the float model sample by sample."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch

from calib.errors import UserError
from deploy.devices.base import Candidate
from deploy.devices.places import machine_directory
from deploy.files.curve import JudgedPoint
from deploy.files.verification import StageName
from deploy.run.workspace import DEVICE, Workspace
from deploy.runner.experiment import CACHE_DIRECTORY
from deploy.runner.state import machine
from deploy.stages.evaluation import Evaluation
from deploy.stages.passage import Passage, go_on
from deploy.stages.stage_runners import Runner, engine_runner, untuned_runner
from smpq.files import Interval
from smpq.problem.policy import Policy
from smpq.value.collected import Collected


class Judge:
    """Runs the evaluation data through engines where this machine runs those of the target, else through the
    fake-quantised model.
    """

    def __init__(self, workspace: Workspace) -> None:
        """Go through the evaluation data once."""
        self._workspace = workspace
        self._data = Evaluation(workspace.task, workspace.traced.sizes)
        self._runs_here = workspace.not_measurable is None and workspace.backend.why_not_timed() is None

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self._data.samples

    @property
    def content(self) -> str:
        """A hash of the evaluation data."""
        return self._data.content

    def run_float(self) -> None:
        """Run the float model, which all others are compared with. UserError where it or the task does not work. Warns
        where the samples are too few for an interval.
        """
        doubt = self._float.doubt()
        if doubt is not None:
            self._workspace.progress.warn(doubt)

    def of_policy(self, policy: Policy, what: str) -> JudgedPoint:
        """Return how accurate a policy's engine is; `what` names it for people. UserError where it gives NaN or
        infinity, or does not open.
        """
        measured_on: Literal["engine", "fake_quant"] = "engine" if self._runs_here else "fake_quant"
        if policy != self._reference:
            return self._compared(self._of_policy(policy, what), measured_on)
        figure, same = self._float.figure(), Interval(0.0, 0.0)
        return JudgedPoint(
            accuracy=figure.value, interval=figure.interval, change=0.0, change_interval=same, measured_on=measured_on
        )

    def of_candidate(self, candidate: Candidate, what: str) -> JudgedPoint:
        """Return how accurate the engine of another model is, as `of_policy`."""
        return self._compared(self._found(self._engine(candidate, what), "engine", what), "engine")

    def _compared(self, found: Collected, measured_on: Literal["engine", "fake_quant"]) -> JudgedPoint:
        figure = found.figure()
        lost = self._float.loss_to(found, point=1.0, largest=self._float.largest)
        low, high = lost.interval
        return JudgedPoint(
            accuracy=figure.value,
            interval=figure.interval,
            change=-lost.mean + 0.0,  # minus zero is zero
            change_interval=Interval(-high, -low),
            measured_on=measured_on,
        )

    @cached_property
    def _float(self) -> Collected:
        return self._of_policy(self._reference, "the float model")

    @property
    def _reference(self) -> Policy:
        return self._workspace.space.uniform(self._workspace.space.reference)

    def _of_policy(self, policy: Policy, what: str) -> Collected:
        if not self._runs_here:
            return self._found(untuned_runner(self._workspace, policy), "fake_quant", what)
        return self._found(self._engine(self._workspace.candidates.candidate(policy), what), "engine", what)

    def _engine(self, candidate: Candidate, what: str) -> Runner:
        workspace = self._workspace
        opened = workspace.backend.open_lowered(
            candidate.model,
            candidate.settings,
            workspace.traced.inputs,
            workspace.settings.batch,
            torch.get_num_threads(),
            machine_directory(workspace.run.file(DEVICE), machine()) / CACHE_DIRECTORY,
        )
        if isinstance(opened, str):
            raise UserError(f"the engine of {what} does not open: {opened}")
        return engine_runner(workspace.traced, opened)

    def _found(self, runner: Runner, stage: StageName, what: str) -> Collected:
        """Return what the metric keeps of a stage."""
        with self._workspace.progress.bar(f"accuracy of {what}", len(self._data)) as advance:
            (passage,) = go_on([Passage(self._workspace.task, stage, runner)], self._data.batches(), advance)
            return passage.found
