"""What the files of a run hold, each read once and checked against the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from calib.errors import UserError
from calib.files.checkpoint import shown
from deploy.files.curve import CurveFile
from deploy.files.engine import BuildFile, KernelRow, LatencyFile
from deploy.files.report import (
    LatencyPart,
)
from deploy.files.search import BudgetFile, CostsFile, LossFile, SpaceFile
from deploy.files.verification import VerifyFile
from deploy.run.directory import Run
from deploy.run.record import RunFile
from deploy.run.scores import find_scores
from deploy.run.spaces import costs_from_file, space_from_file
from deploy.stages.finetuning import FINE_TUNED, version_of
from deploy.stages.policies import policy_of_run
from deploy.targets.target import Target, target_from_name
from smpq.files import ContributionsFile, StabilityFile
from smpq.problem.budget import Budget
from smpq.problem.costs import CostModel
from smpq.problem.policy import Policy, Space
from smpq.reconstruction.rounding import learns_rounding
from smpq.scoring.scores import Scores
from smpq.training.lsq import check_learned

COST_UNITS = {"size": "bytes", "avg_bits": "bits", "bops": "bops"}
"""Costs of every run that need no measurement, with their units."""


@dataclass(frozen=True)
class Recorded:
    """What the files of a run hold, each read once."""

    run: Run

    @cached_property
    def record(self) -> RunFile:
        """`run.json`."""
        self.run.settings()  # says what a directory without run.json is
        return self.run.read(RunFile)

    @cached_property
    def space_file(self) -> SpaceFile:
        """`space.json`."""
        return self.run.read(SpaceFile)

    @cached_property
    def space(self) -> Space:
        """What may be chosen."""
        record = self.space_file
        with self.run.about(SpaceFile):
            return space_from_file(record)

    @cached_property
    def costs(self) -> dict[str, CostModel]:
        """The costs that need no measurement, by name."""
        costs = costs_from_file(self.run.read(CostsFile))
        for name in COST_UNITS:
            for group in self.space.groups:
                if name not in costs or not costs[name].parts.get(group.name, {}).keys() >= set(
                    self.space.priced(group.name)
                ):
                    raise UserError(
                        f"{self.run.file(CostsFile.NAME)} does not fit {SpaceFile.NAME}: use {SpaceFile.MADE_BY} again"
                    )
        return costs

    @cached_property
    def policy(self) -> Policy:
        """The policy in `policy.json`."""
        return policy_of_run(self.run, self.space, self.space_file.refused)

    @cached_property
    def version(self) -> str:
        """The key of the policy and its fine-tuned weights."""
        return version_of(self.run, self.policy)

    @cached_property
    def target(self) -> Target:
        """The target of the run."""
        settings = self.record.settings
        with self.run.about(RunFile):
            return target_from_name(settings.target, settings.compute_capabilities)

    @cached_property
    def scores(self) -> Scores | None:
        """The scores; None when there are none."""
        return find_scores(self.run, self.space)

    @cached_property
    def budget(self) -> Budget | None:
        """The budget that `policy.json` was solved for; None when it was written by hand."""
        record = self.run.find(BudgetFile)
        return Budget.from_text(record.budget) if record is not None else None

    @cached_property
    def loss(self) -> LossFile | None:
        """What the policy loses by the samples that decided about it; None for another policy or budget."""
        record = self.run.find_for(LossFile, self.version)
        return record if record is not None and self.budget is not None and record.budget == str(self.budget) else None

    @cached_property
    def tuning(self) -> Literal["finetune", "reconstruct"] | None:
        """How the weights can still be tuned: fine-tuned where the task has training data, as a run of an older version
        is taken to have, else reconstructed. None where they were, where calibration is without samples, where a format
        cannot be learned, and where no integers could be.
        """
        if self.run.has(FINE_TUNED) or self.record.settings.data_free:
            return None
        try:
            check_learned(self.space.offered)
        except UserError:
            return None
        if self.record.trainable is not False:
            return "finetune"
        return "reconstruct" if any(learns_rounding(each.weight) for each in self.policy.formats.values()) else None

    @cached_property
    def latency(self) -> LatencyPart | None:
        """The measured latency of the policy; None when there is none."""
        record = self.run.find_for(LatencyFile, self.version)
        return latency_part(record) if record is not None else None

    @cached_property
    def kernels(self) -> dict[str, KernelRow]:
        """What each unit became in the engine; empty when it was not built."""
        record = self.run.find_for(BuildFile, self.version)
        kernels = record.kernels if record is not None else {}
        unknown = sorted(kernels.keys() - {unit.path for unit in self.space.units})
        if unknown:
            with self.run.about(BuildFile):
                raise UserError(
                    f"it has a kernel of {shown(unknown[0])}, which is no layer: use {BuildFile.MADE_BY} again"
                )
        return kernels

    @cached_property
    def curve(self) -> CurveFile | None:
        """Engines across the whole range; None where there is no curve, or one that was stopped."""
        record = self.run.find(CurveFile)
        for point in record.points if record is not None else ():
            if point.policy is not None:
                with self.run.about(CurveFile):
                    Policy.from_file(point.policy, self.space)
        return record if record is not None and record.complete else None

    @cached_property
    def stability(self) -> StabilityFile | None:
        """How sure the scores are of the policy, and whether their own plan is proven; None when that was not looked
        at.
        """
        record = self.run.find_for(StabilityFile, self.policy.key())
        if record is None or not (record.resamples or record.allocation):
            return None
        if record.resamples and record.frequencies.keys() != self.policy.formats.keys():
            raise UserError(
                f"{self.run.file(StabilityFile.NAME)} is about other layers: use {StabilityFile.MADE_BY} again"
            )
        return record

    @cached_property
    def contributions(self) -> ContributionsFile | None:
        """What each layer's format costs in the policy."""
        record = self.run.find_for(ContributionsFile, self.policy.key())
        for row in record.contributions if record is not None else ():
            if row.group not in self.policy.formats or str(self.policy[row.group]) != row.format:
                file = self.run.file(ContributionsFile.NAME)
                raise UserError(
                    f"{file} has {shown(row.group)} in {row.format}, which is not in the policy: use "
                    f"{ContributionsFile.MADE_BY} again"
                )
        return record

    @cached_property
    def verification(self) -> VerifyFile | None:
        """The accuracy of each stage; None when it was not verified."""
        record = self.run.find_for(VerifyFile, self.version)
        wrong = record.contradiction() if record is not None else None
        if wrong is not None:
            raise UserError(f"{self.run.file(VerifyFile.NAME)} is damaged: {wrong}: use {VerifyFile.MADE_BY} again")
        return record


def latency_part(record: LatencyFile) -> LatencyPart:
    """Return the report's form of a measured latency."""
    timed = record.measurement
    return LatencyPart(
        ratio=timed.ratio,
        interval=timed.ratio_interval,
        engine_ms=timed.engine_ms,
        float_ms=timed.float_ms,
        p99_ms=timed.p99_ms,
        p99_calls=timed.p99_calls,
        p99_note=timed.p99_note,
        throughput=timed.throughput,
        enqueue_ms=timed.enqueue_ms,
        hot_ms=timed.hot_ms,
        cold_ms=timed.cold_ms,
        slowdown=timed.slowdown,
        throttled=timed.throttled,
        clock=timed.clock,
        batch=timed.batch,
        rounds=record.rounds,
        machine=record.machine,
        predicted_ratio=record.predicted_ratio,
        predicted_interval=record.predicted_interval,
        predicted_from=record.predicted_from,
    )
