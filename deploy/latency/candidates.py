"""Policies as lowered models, each lowered once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from calib.errors import UserError
from calib.files.storage import writing
from deploy.backends import Backend
from deploy.devices.base import Candidate
from deploy.lowering.lower import LoweringReport
from deploy.lowering.onnx_files import copy_model, data_path, sha256, size_bytes
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QuantPlan

CANDIDATES = "candidates"
"""Directory of a run: lowered models, named by the hash of their content."""


@dataclass(frozen=True)
class _Lowered:
    path: Path
    sha256: str
    report: LoweringReport
    candidate: Candidate | None = None

    def is_there(self) -> bool:
        """Whether the file still has the content that was written."""
        return self.path.is_file() and sha256(self.path) == self.sha256


class Candidates:
    """Lowers policies with the back end of a target, each once in a process. Models are kept under the hash of their
    content, so that an engine that is known is not made again.
    """

    def __init__(
        self,
        directory: Path,
        source: Path,
        plan: Callable[[Policy], QuantPlan],
        space: Space,
        backend: Backend,
        batch: int,
    ) -> None:
        """`source` is the float ONNX model, and `plan` gives the quantisation plan of a policy. `batch` is the usual
        batch size.
        """
        self._directory = directory
        self._source, self._source_sha256, self._plan = source, sha256(source), plan
        self._space, self._backend, self._batch = space, backend, batch
        self._lowered: dict[tuple[str, int], _Lowered] = {}

    def float_candidate(self, batch: int | None = None) -> Candidate:
        """Return the lowered float model."""
        return self.candidate(self._space.uniform(self._space.reference), batch)

    def candidate(self, policy: Policy, batch: int | None = None) -> Candidate:
        """Return the lowered model of a policy, for the usual batch size or another one."""
        key = (policy.key(), batch or self._batch)
        known = self._known(key)
        if known is not None and known.candidate is not None:
            return known.candidate
        with tempfile.TemporaryDirectory() as directory:
            model = Path(directory) / "model.onnx" if known is None else known.path
            report = self._lower(policy, model, batch or self._batch) if known is None else known.report
            candidate = self.kept(model)
        self._lowered[key] = _Lowered(candidate.model, sha256(candidate.model), report, candidate)
        return candidate

    def lower_into(self, policy: Policy, path: Path) -> LoweringReport:
        """Write the lowered model of a policy to `path`; one that was lowered before is copied."""
        key = (policy.key(), self._batch)
        known = self._known(key)
        if known is not None:
            copy_model(known.path, path)
            return replace(known.report, size_bytes=size_bytes(path), sha256=sha256(path))
        report = self._lower(policy, path, self._batch)
        self._lowered[key] = _Lowered(path, report.sha256, report)
        return report

    def kept(self, model: Path) -> Candidate:
        """Return the candidate of a lowered model, copied into the directory unless it is there."""
        name, settings = sha256(model)[:16], self._backend.settings(model)
        place = self._directory / f"{name}.onnx"
        if not _is(place, name):
            with writing(place.parent):
                copy_model(model, place)
        return Candidate(name, place, settings)

    def _known(self, key: tuple[str, int]) -> _Lowered | None:
        known = self._lowered.get(key)
        return known if known is not None and known.is_there() else None

    def _lower(self, policy: Policy, path: Path, batch: int) -> LoweringReport:
        if not self._source.is_file() or sha256(self._source) != self._source_sha256:
            raise UserError(f"{self._source} has changed since the command began: delete it, it is exported again")
        return self._backend.lower(self._source, self._plan(policy), self._space.units, path, batch)


def _is(place: Path, name: str) -> bool:
    """Whether a candidate is there as it was made. Weights in a file of their own change the hash, and are believed."""
    return place.is_file() and (data_path(place).is_file() or sha256(place)[:16] == name)
