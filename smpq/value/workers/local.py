"""Workers that are processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.errors import UserError
from smpq.value.workers.process import Answer, Died, Ready, Work, WorkerProcess

if TYPE_CHECKING:
    from smpq.value.workers.pool import Worker

_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_CONTEXT: Any = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
"""A process that is forked off this one could use neither CUDA nor the threads of OpenMP. One that is forked off a
server, which has imported torch and done nothing with it, can: importing takes seconds, and workers share the memory.
"""
_PATIENCE_S = 10


class LocalWorker:
    """A process and the pipe to it."""

    def __init__(self) -> None:
        """Start the process; UserError when the system does not."""
        if _FORKS:
            multiprocessing.set_forkserver_preload(["torch", "smpq.value.workers.process"])
        self.connection, theirs = _CONTEXT.Pipe()
        self.process: BaseProcess = _CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            with _interrupts_held():
                self.process.start()
        except (EOFError, OSError) as error:
            raise UserError(f"worker processes cannot be started ({error}): use --workers 1") from error
        finally:
            theirs.close()

    def give(self, work: Work) -> None:
        """Send the work."""
        with contextlib.suppress(OSError):  # it is gone, which is heard in `hear`
            self.connection.send(work)

    def hear(self) -> Ready | Answer | Died:
        """Return what it has sent, or that it is gone."""
        try:
            said: Ready | Answer = self.connection.recv()
            return said
        except (EOFError, OSError):
            self.process.join(_PATIENCE_S)
            code = self.process.exitcode
            _end(self)
            return Died(f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}")


class LocalWorkerSource:
    """Starts processes; they end with `close`, when this is forgotten, and when this process ends in whatever way."""

    def __init__(self, count: int) -> None:
        """Prepare to start `count` processes."""
        self.count = count
        self._started: list[LocalWorker] = []
        self._finalizer = weakref.finalize(self, _end_all, self._started)

    def start(self) -> LocalWorker:
        """Start a process."""
        worker = LocalWorker()
        self._started.append(worker)
        return worker

    def wait(self, workers: Sequence[Worker]) -> list[tuple[Worker, Ready | Answer | Died]]:
        """Wait until at least one of the workers has said something, or died: its end of the pipe is closed then."""
        by_connection = {worker.connection: worker for worker in workers if isinstance(worker, LocalWorker)}
        heard: list[tuple[Worker, Ready | Answer | Died]] = []
        for connection in wait(list(by_connection)):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            said = worker.hear()
            if isinstance(said, Died):
                self._started.remove(worker)
            heard.append((worker, said))
        return heard

    def close(self) -> None:
        """End all processes."""
        _end_all(self._started)


def _end_all(workers: list[LocalWorker]) -> None:
    while workers:
        _end(workers.pop())


def _end(worker: LocalWorker) -> None:
    worker.process.kill()
    worker.process.join(_PATIENCE_S)
    worker.connection.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C goes to all processes of a terminal; a worker inherits that it does not hear it, and is ended by its
    parent.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection) -> None:
    """Answer until the parent closes the pipe; a parent that was killed ends its workers at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    process = WorkerProcess()
    with contextlib.suppress(EOFError, OSError):
        connection.send(process.ready())
        while True:
            connection.send(process.answer(connection.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
