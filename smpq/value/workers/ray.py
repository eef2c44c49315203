"""Workers that are actors of a Ray cluster: many machines, many GPUs."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calib.errors import UserError, first_line
from smpq.value.workers.process import Answer, Died, Ready, Work, WorkerProcess

if TYPE_CHECKING:
    from smpq.value.workers.pool import Worker

LOCAL = "local"
_STORE_BYTES = 200 * 2**20
_TIMEOUT_S = 5
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of later versions; it is warned about otherwise
    "RAY_worker_niceness": "0",  # 15 by default, so that anything else on the machine would go first
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # notes on dead workers, which would go to standard output
}


class RayWorker:
    """An actor, and the reference of what it says next (None when it has nothing to do)."""

    def __init__(self, source: RayWorkerSource, actor: Any) -> None:
        """Ask the actor whether it is there."""
        self.actor = actor
        self.pending: Any = actor.ready.remote()
        self._source = weakref.proxy(source)

    def give(self, work: Work) -> None:
        """Send the work, with the payload by the object store."""
        self.pending = self.actor.answer.remote(replace(work, payload=None), self._source.stored(work))


class RayWorkerSource:
    """Starts actors, each with one CPU and `gpus` GPUs; they end with `close`, and with this process."""

    def __init__(self, address: str, count: int | None = None, gpus: float = 0.0) -> None:
        """Connect to a cluster: `local` starts one on this machine, `auto` finds one, or host:port, or ray://host:port.

        With `count` None there are as many workers as the cluster has room for. The ports of a local one ask for a
        token that only the processes started from this one know. UserError when ray is not installed, the address does
        not answer, or there is no room.
        """
        self._ray = _import_ray(own_cluster=address == LOCAL)
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, address, count)
        self._actors: list[Any] = []
        self._finalizer = weakref.finalize(self, _disconnect, self._ray, self._ours, self._actors)
        self._payloads: dict[int, Any] = {}
        try:
            self.count = _room(self._ray.cluster_resources(), count, gpus)
        except UserError:
            self.close()
            raise
        self._remote = self._ray.remote(_Actor).options(num_cpus=1, num_gpus=gpus, max_restarts=0)

    def start(self) -> RayWorker:
        """Start an actor."""
        actor = self._remote.remote()
        self._actors.append(actor)
        return RayWorker(self, actor)

    def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Ready | Answer | Died]]:
        """Wait until at least one of the workers has said something, or died with work in hand."""
        by_reference = {
            worker.pending: worker for worker in workers if isinstance(worker, RayWorker) and worker.pending is not None
        }
        done, _ = self._ray.wait(list(by_reference))
        return [(by_reference[reference], self._hear(by_reference[reference])) for reference in done]

    def stored(self, work: Work) -> Any:
        """Return the payload's reference in the object store, None when the worker has it."""
        if work.payload is not None and work.game not in self._payloads:
            self._payloads[work.game] = self._ray.put(work.payload)
        return self._payloads[work.game] if work.payload is not None else None

    def close(self) -> None:
        """End the actors, and the cluster if it is our own."""
        self._payloads.clear()
        self._finalizer()

    def _hear(self, worker: RayWorker) -> Ready | Answer | Died:
        reference, worker.pending = worker.pending, None
        try:
            said: Ready | Answer = self._ray.get(reference)
            return said
        except self._ray.exceptions.RayTaskError as error:
            return Answer(failure=str(error))
        except self._ray.exceptions.RayError as error:
            self._actors.remove(worker.actor)
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(worker.actor)
            return Died(" ".join(str(error).split())[-200:])


class _Actor(WorkerProcess):
    """A process whose payloads come out of the object store."""

    def answer(self, work: Work, payload: bytes | None = None) -> Answer:
        return super().answer(replace(work, payload=payload))


def _import_ray(*, own_cluster: bool) -> Any:
    os.environ.update({name: text for name, text in _QUIET.items() if name not in os.environ})
    if own_cluster and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        # ray reads this once, when it is imported
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs the package ray: pip install 'smpq[ray]'") from error
    if own_cluster and not ray.is_initialized() and os.environ.get("RAY_AUTH_MODE") != "token":
        raise UserError(
            "ray was imported without a token (RAY_AUTH_MODE), so that anyone who reaches this machine could use a "
            "cluster started now: "
            "call ray.init() yourself before, or give the address of a cluster that is running"
        )
    return ray


def _connect(ray: Any, address: str, count: int | None) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address == LOCAL:
            ray.init(address=LOCAL, num_cpus=count, include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
        else:
            _check_answers(address)
            ray.init(address=address, **quiet)
    except Exception as error:  # ray raises many types, plain ones when a cluster does not come up in time
        reason = first_line(error)
        raise UserError(f"--ray {address}: {reason}; use local, auto, host:port or ray://host:port") from error


def _check_answers(address: str) -> None:
    """Knock at the port: ray itself tries for minutes, and ends the process then."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S):
            pass


def _room(resources: Mapping[str, float], count: int | None, gpus: float) -> int:
    found = int(min(resources.get("CPU", 0.0), resources.get("GPU", 0.0) / gpus if gpus else float("inf")))
    if found < (count or 1):
        what = f"{gpus:g} GPUs and one CPU" if gpus else "one CPU"
        raise UserError(
            f"the Ray cluster has room for {found} workers of {what} each, not for {count or 1}: use fewer --workers"
        )
    return count or found


def _disconnect(ray: Any, ours: bool, actors: list[Any]) -> None:
    while actors and ray.is_initialized():
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(actors.pop())
    if ours:
        ray.shutdown()
