"""The open run: everything that its stages share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from calib.batches import Batches
from calib.errors import UserError
from calib.formats.format import Format
from calib.network.attention import Attention
from calib.network.fingerprint import Fingerprint, fingerprint
from calib.network.fold import Folded
from calib.network.graph import TracedModel
from calib.network.units import Skipped, Unit
from calib.task import Batch, Task, judges_of
from deploy.backends import Backend, backend_of
from deploy.devices.address import is_here
from deploy.devices.base import Device, silent
from deploy.latency.bench import Bench, Conditions
from deploy.latency.candidates import CANDIDATES, Candidates
from deploy.latency.observations import Observations
from deploy.run.calibrating import calibrated
from deploy.run.data_free import DataFree
from deploy.run.directory import DECISIVE, Run, versions
from deploy.run.float_onnx import export_float_model
from deploy.run.held_out import HeldOut, held_out_of
from deploy.run.settings import Settings
from deploy.run.workers import pool_that_pays
from deploy.targets.offers import offer
from deploy.targets.target import Target
from deploy.terminal.progress import Progress
from smpq.problem.costs import CostModel, cost_models
from smpq.problem.joins import Edge, find_edges
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QdqRules, QuantPlan
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.evaluate import Evaluator
from smpq.value.journal import Journal
from smpq.value.value import PolicyValue
from smpq.value.workers.pool import WorkerPool
from smpq.value.workers.process import placed
from smpq.value.workers.resources import Resources

if TYPE_CHECKING:
    from typing_extensions import Self

DEVICE = "device"
"""Directory of a run: what the device was given, and what it has measured."""
_UNSEEN = 4
"""So many times the samples of the search, unseen ones are kept in memory at most."""


@dataclass
class Workspace:
    """A loaded task: float model traced, units found, space restricted to the target. Calibration happens on first use.

    `original` is the model before folding, and `folded` says which BatchNorm became part of which layer. `pool` are the
    workers that evaluate, None when this process does. `address` is that of the machine that engines are timed on,
    `device` (`deploy.devices.address`). `compared` holds the exported files that this process has compared with the
    module, with the hash of their content. `threads_before` is how many threads PyTorch had before this run chose its
    own (`deploy.run.threads`). `data_free` are the synthetic samples of a run without samples of the user's.
    `attention` is that whose products are quantised.
    """

    run: Run
    settings: Settings
    task: Task
    target: Target
    traced: TracedModel
    space: Space
    skipped: tuple[Skipped, ...]
    refused: dict[str, str]
    batches: Batches
    progress: Progress
    original: nn.Module
    folded: tuple[Folded, ...]
    resources: Resources
    pool: WorkerPool | None
    address: str
    device: Device
    threads_before: int
    data_free: DataFree | None = None
    attention: tuple[Attention, ...] = ()
    compared: set[tuple[Path, str]] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, if there are any, close the journal, take away what is on the device, and give PyTorch its
        threads back. A device that cannot be reached is a warning: it hides neither a result nor another error.
        """
        if self.pool is not None:
            self.pool.close()
        if "journal" in self.__dict__:
            self.journal.close()
        try:
            self.device.close()
        except UserError as error:
            self.progress.warn(
                f"what this run has left on the device is removed by its next command with that --device: {error}"
            )
        finally:
            torch.set_num_threads(self.threads_before)

    @property
    def verifiable(self) -> bool:
        """Whether there are evaluation data; only a run without samples of the user's may have none."""
        return self.data_free is None or self.data_free.record.evaluation

    @property
    def times_here(self) -> bool:
        """Whether engines are timed on this machine."""
        return is_here(self.address)

    @cached_property
    def backend(self) -> Backend:
        """What lowers, builds and opens engines of the target."""
        return backend_of(self.target)

    @cached_property
    def builds_on_device(self) -> bool:
        """Whether the device builds the engine too: TensorRT builds for its own GPU, and a provider of ONNX Runtime may
        be missing here.
        """
        return not self.times_here and not self.backend.builds_for_devices

    @cached_property
    def not_measurable(self) -> str | None:
        """Why engines of the target cannot be timed; None when they can."""
        if not self.times_here and self.target.timed:
            return None
        return self.backend.why_not_timed()

    @cached_property
    def identity(self) -> Fingerprint:
        """What the results of the run depend on: graph, weights, calibration data, metric and versions."""
        found = versions()
        decisive = {name: found[name] for name in DECISIVE if name in found}
        return fingerprint(self.traced, self.batches.content, decisive, judges_of(self.task))

    @property
    def fingerprint(self) -> str:
        """The identity as one hash."""
        return self.identity.key

    @cached_property
    def fake_quantizer(self) -> FakeQuantizer:
        """Calibrate, and round every weight that the space may need."""
        return calibrated(self, rules_of(self.target))

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluate policies on the first `samples` calibration samples, through the run's journal; starts workers where
        nobody said how many, and they pay.
        """
        here = self._value(self.judging)
        if self.pool is None and self.resources.workers is None:
            self.pool = pool_that_pays(here, self.task, self.settings.spending, self.resources, self.progress)
        return self._evaluator(here, self.fingerprint)

    @cached_property
    def judging(self) -> list[Batch]:
        """The batches that policies are judged on: the first `samples` calibration samples."""
        return self.batches[: self._reaching(self.settings.samples)]

    @cached_property
    def unseen(self) -> Evaluator | None:
        """Evaluate policies on calibration samples that the search does not use, four times as many at most; None when
        they are fewer than those it does.
        """
        start = self._reaching(self.settings.samples)
        end = self._reaching((1 + _UNSEEN) * self.settings.samples)
        if sum(self.batches.counts[start:end]) < self.settings.samples:
            return None
        return self._evaluator(self._value(self.batches[start:end]), f"{self.fingerprint}|unseen")

    def _reaching(self, samples: int) -> int:
        """Return how many of the first batches hold so many samples."""
        return 1 + sum(count < samples for count in itertools.accumulate(self.batches.counts))

    def _value(self, batches: list[Batch]) -> PolicyValue:
        return PolicyValue(
            self.fake_quantizer,
            self.space,
            self.task,
            batches,
            self.settings.value,
            self.resources.memory_limit_mb,
            self.resources.evaluates_on,
        )

    def _evaluator(self, here: PolicyValue, fingerprint: str) -> Evaluator:
        compute = placed(here) if self.pool is None else self.pool.compute(here)
        digest = self.fake_quantizer.calibration.digest()
        return Evaluator(compute, self.journal, f"{fingerprint}|{digest}")

    @cached_property
    def journal(self) -> Journal:
        """Every evaluation of the run, on disk."""
        return Journal(self.run.file("journal.sqlite"))

    @cached_property
    def held_out(self) -> HeldOut:
        """The samples that decide what may be lost; calibrates."""
        return held_out_of(self)

    @cached_property
    def costs(self) -> dict[str, CostModel]:
        """The costs that need no measurement."""

        def stored(unit: Unit, chosen: Format) -> Format:
            return offer(self.target, unit, chosen).stored_as or chosen

        return cost_models(self.space, self.traced, stored)

    def plan(self, policy: Policy) -> QuantPlan:
        """Return the quantisation plan of a policy."""
        return self.fake_quantizer.plan(policy.by_unit(self.space.groups), policy.float_joins)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The tensors that are converted where integers meet floats."""
        return find_edges(self.traced, self.space.groups, rules_of(self.target))

    @cached_property
    def candidates(self) -> Candidates:
        """Policies as lowered models, each lowered once. Exports and calibrates, unless that was done.

        What is kept here holds no reference to the workspace: the run's lock and journal end with it.
        """
        source, quantizer, space = export_float_model(self), self.fake_quantizer, self.space

        def plan(policy: Policy) -> QuantPlan:
            return quantizer.plan(policy.by_unit(space.groups), policy.float_joins)

        return Candidates(self.run.file(CANDIDATES), source, plan, space, self.backend, self.settings.batch)

    @cached_property
    def observations(self) -> Observations:
        """What each machine has measured of the engines of this run."""
        directory = self.run.file(CANDIDATES)
        return Observations(self.run, self.space, self.fingerprint, directory, self.progress.warn)

    @cached_property
    def bench(self) -> Bench:
        """Times engines on the device."""
        conditions = Conditions(
            runtime=self.target.runtime,
            inputs=tuple(self.traced.inputs),
            batches=self.batches,
            sizes=self.traced.sizes,
            batch=self.settings.batch,
            seed=self.settings.seed,
            fingerprint=self.fingerprint,
            label=f"{self.settings.task} on {self.target.name}",
        )
        announce = silent if self.times_here else self.progress.say
        return Bench(self.device, conditions, self.candidates, self.observations, announce)


def rules_of(target: Target) -> QdqRules:
    """Return what a target's runtime wants quantised besides the inputs of integer layers."""
    return QdqRules(target.activation_scheme, target.quantize_outputs, target.quantize_skips, target.integer_biases)
