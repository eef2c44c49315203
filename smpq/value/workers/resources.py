"""What a run may be computed with; the values do not depend on it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch

from calib.errors import UserError
from smpq.value.workers.local import LocalWorkerSource
from smpq.value.workers.pool import WorkerPool
from smpq.value.workers.ray import RayWorkerSource

_MOST_MB = 1e9
"""A petabyte."""


@dataclass(frozen=True)
class Resources:
    """How many workers evaluate, where, and how much memory the activations of one of them may take, in MB.

    `workers` None: one, which is this process; with `ray` as many as the cluster has CPUs. `ray` is the address of a
    cluster, `local` for one of its own on this machine. `device` evaluates: cpu, cuda, cuda:1, ..., or auto for cuda
    where there is one. A later command on the same run may have other resources.
    """

    workers: int | None = None
    ray: str | None = None
    memory_limit_mb: float | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers must be at least 1, not {self.workers}")
        if self.ray is not None and not self.ray.strip():
            raise UserError("--ray needs an address: local, auto, host:port or ray://host:port")
        if self.memory_limit_mb is not None and not 0 < self.memory_limit_mb <= _MOST_MB:
            raise UserError(
                f"--memory-limit is a number of MB above 0 and at most {_MOST_MB:g}, not {self.memory_limit_mb}"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(f"--torch-device is auto, cpu, cuda or cuda:N, not {self.device!r}")
        if self.device.startswith("cuda") and self.ray is None and not torch.cuda.is_available():
            raise UserError(
                "torch sees no CUDA device here: use --torch-device cpu, or install a build of torch for CUDA"
            )

    @property
    def evaluates_on(self) -> str:
        """The device that evaluates, with `auto` decided for this machine."""
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    @property
    def elsewhere(self) -> bool:
        """Whether other processes evaluate."""
        return self.ray is not None or (self.workers or 1) > 1

    def pool(self) -> WorkerPool | None:
        """Return workers that have not started yet, None when this process evaluates. UserError for a cluster that does
        not answer.
        """
        if not self.elsewhere:
            return None
        return WorkerPool(
            RayWorkerSource(self.ray, self.workers, gpus=float(self.evaluates_on != "cpu"))
            if self.ray is not None
            else LocalWorkerSource(self.workers or 1)
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a run's files."""
        return asdict(self)
