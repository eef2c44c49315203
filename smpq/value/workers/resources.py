"""What a run may be computed with; the values do not depend on it. Importing it does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from calib.declared import Declared, Group, Interval, Matching, check_declared
from calib.errors import UserError

if TYPE_CHECKING:
    from smpq.value.workers.pool import WorkerPool

_ADDRESSES = "local (one on this machine), auto, host:port or ray://host:port"


@dataclass(frozen=True)
class Resources:
    """How many workers evaluate, where, and how much memory in MB the activations of one of them may take, the
    statistics of layers, and the calibration data that are kept in memory.

    `workers` None: one for each free core where that pays, on a busy machine as many as get half of it
    (`deploy.run.workers`), otherwise this process; with `ray` as many as the cluster has CPUs. `ray` is the address of
    a cluster, `local` for one of its own on this machine. `device` evaluates: cpu, cuda, cuda:1, ..., or auto for cuda
    where there is one. A later command on the same run may have other resources.
    """

    workers: Annotated[
        int | None,
        Declared(
            "processes that evaluate",
            Interval(1, 10**4),
            "--workers",
            unset="one for each free core where that pays, half of a busy machine; with --ray all of the cluster",
        ),
    ] = None
    ray: Annotated[
        str | None,
        Declared(
            f"evaluate on a Ray cluster: {_ADDRESSES}",
            Matching(r".*\S.*", f"an address: {_ADDRESSES}"),
            "--ray",
            Group.SELDOM,
        ),
    ] = None
    memory_limit_mb: Annotated[
        float | None,
        Declared(
            "memory that the activations of one evaluation, the statistics of layers and calibration data that are "
            "kept may take, each",
            Interval(0, above=True),
            "--memory-limit",
            Group.SELDOM,
            metavar="MB",
        ),
    ] = None
    device: Annotated[
        str,
        Declared(
            "where PyTorch evaluates and trains: auto (a GPU if there is one), cpu, cuda, cuda:N",
            Matching(r"auto|cpu|cuda(:[0-9]+)?", "auto, cpu, cuda or cuda:N"),
            "--torch-device",
            Group.WHERE,
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        check_declared(self)
        if self.device.startswith("cuda") and self.ray is None and not _cuda_is_here():
            raise UserError(
                "torch sees no CUDA device here: use --torch-device cpu, or install a build of torch for CUDA"
            )

    @property
    def evaluates_on(self) -> str:
        """The device that evaluates, with `auto` decided for this machine."""
        return ("cuda" if _cuda_is_here() else "cpu") if self.device == "auto" else self.device

    @property
    def trains_on(self) -> str:
        """The device of this process, which trains and takes gradients: the CPU where a cluster alone has CUDA."""
        return "cpu" if self.evaluates_on.startswith("cuda") and not _cuda_is_here() else self.evaluates_on

    def pool(self) -> WorkerPool | None:
        """Return workers that have not started yet, None when this process evaluates. UserError for a cluster that does
        not answer.
        """
        if self.ray is None and (self.workers or 1) == 1:
            return None
        from smpq.value.workers.local import LocalWorkerSource
        from smpq.value.workers.pool import WorkerPool
        from smpq.value.workers.ray import RayWorkerSource

        return WorkerPool(
            RayWorkerSource(self.ray, self.workers, gpus=float(self.evaluates_on != "cpu"))
            if self.ray is not None
            else LocalWorkerSource(self.workers or 1)
        )


def _cuda_is_here() -> bool:
    import torch

    return bool(torch.cuda.is_available())
