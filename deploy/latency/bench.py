"""Policies of a run, lowered, built and timed on a device."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from calib.errors import UserError
from calib.files.storage import writing
from deploy.devices.base import Candidate, Experiment, silent
from deploy.latency.loop import Refusal
from deploy.latency.measure import Protocol
from deploy.latency.model import Observation
from deploy.latency.observations import CANDIDATES, Measured, keep_measured
from deploy.lowering.onnx_files import copy_model, data_path, sha256
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import Workspace
from smpq.problem.policy import Policy

THOROUGH = Protocol(rounds=41, round_ms=15.0)
FINAL = replace(THOROUGH, singles=1000)
_NEAR = 0.03
"""A ratio this near to the limit, relatively, may fall on either side of it."""


class Bench:
    """Lowers policies and has them timed, each interleaved with the float engine. Needs `model.float.onnx` in the
    run.
    """

    def __init__(self, workspace: Workspace) -> None:
        """Candidates are kept in the run under the hash of their content, so an engine that is known is not made
        again.
        """
        self._prepared = workspace
        self._float: dict[int, Candidate] = {}

    @property
    def machine(self) -> str:
        """Name the machine that engines are timed on."""
        return self._prepared.device.describe()

    def observe(self, policy: Policy, limit: float | None = None) -> Observation | Refusal:
        """Time one policy, thoroughly if its ratio is near `limit`, and add what came of it to the run's
        measurements.
        """
        candidate = self.candidate(policy)
        (measured,) = self.measure([(policy, candidate)], Protocol())
        ratio = measured.result.ratio
        if limit is not None and ratio is not None and abs(ratio / limit - 1) < _NEAR:
            (measured,) = self.measure([(policy, candidate)], THOROUGH)
        return keep_measured(self._prepared, [measured], self.machine)[0]

    def measure(
        self, chosen: Sequence[tuple[Policy, Candidate]], protocol: Protocol, batch: int | None = None
    ) -> list[Measured]:
        """Time candidates by a protocol of your own, at the run's batch size or another one."""
        experiment = self.experiment([candidate for _, candidate in chosen], protocol, batch)
        announce = silent if self._prepared.times_here else self._prepared.progress.say
        results = self._prepared.device.measure(experiment, announce)
        return [Measured(policy, result) for (policy, _), result in zip(chosen, results, strict=True)]

    def experiment(
        self, candidates: Sequence[Candidate], protocol: Protocol, batch: int | None = None, label: str = ""
    ) -> Experiment:
        """Return what a device needs to time the candidates against the float engine."""
        workspace = self._prepared
        batch = batch or workspace.settings.batch
        return Experiment(
            runtime=workspace.target.runtime,
            float_=self.float_candidate(batch),
            candidates=tuple(candidates),
            inputs=self._inputs(batch),
            batch=batch,
            protocol=protocol,
            seed=workspace.settings.seed,
            fingerprint=workspace.fingerprint,
            label=label or f"{workspace.settings.task} on {workspace.target.name}",
        )

    def float_ms(self) -> float:
        """Return what the float engine takes for one batch on the device, in milliseconds."""
        reference = self._prepared.space.uniform(self._prepared.space.reference)
        (measured,) = self.measure([(reference, self.float_candidate(self._prepared.settings.batch))], Protocol())
        if measured.result.float_ms is None:
            raise UserError(f"the float engine cannot be timed: {measured.result.failed}")
        return measured.result.float_ms

    def float_candidate(self, batch: int) -> Candidate:
        """Return the lowered float model."""
        if batch not in self._float:
            self._float[batch] = self.candidate(self._prepared.space.uniform(self._prepared.space.reference), batch)
        return self._float[batch]

    def candidate(self, policy: Policy, batch: int | None = None) -> Candidate:
        """Lower a policy into the run, unless it is there."""
        workspace = self._prepared
        with tempfile.TemporaryDirectory() as directory:
            model = Path(directory) / "model.onnx"
            source = export_float_model(workspace)
            plan, size = workspace.plan(policy), batch or workspace.settings.batch
            workspace.backend.lower(source, plan, workspace.space.units, model, size)
            return self.kept(model)

    def kept(self, model: Path) -> Candidate:
        """Return the candidate of a lowered model, copied into the run unless it is there."""
        name, settings = sha256(model)[:16], self._prepared.backend.settings(model)
        place = self._prepared.run.file(CANDIDATES) / f"{name}.onnx"
        if not _is(place, name):
            with writing(place.parent):
                copy_model(model, place)
        return Candidate(name, place, settings)

    def _inputs(self, batch: int) -> dict[str, np.ndarray]:
        """Return one batch of calibration samples by input name, repeated when there are fewer."""
        tensors = self._calibration
        repeats = math.ceil(batch / len(next(iter(tensors.values()))))
        return {
            name: np.ascontiguousarray(np.concatenate([tensor] * repeats)[:batch]) for name, tensor in tensors.items()
        }

    @cached_property
    def _calibration(self) -> dict[str, np.ndarray]:
        batches = self._prepared.batches
        return {
            name: np.concatenate([batch.inputs[index].numpy() for batch in batches])
            for index, name in enumerate(self._prepared.traced.inputs)
        }


def _is(place: Path, name: str) -> bool:
    """Whether a candidate is there as it was made. Weights in a file of their own change the hash, and are believed."""
    return place.is_file() and (data_path(place).is_file() or sha256(place)[:16] == name)
