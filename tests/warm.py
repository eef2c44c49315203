"""Processes that begin where the imports of a command end: they are forked off one that has made them.

An interpreter of its own takes seven seconds of a core for what every command imports, and would make anew what tests
keep: see `torch_kept`, `traced_once` and `solved_once`. Engines are timed shortly, as in the tests themselves; nothing
else differs. A forked process has its own files, environment, directory, signals and end. One server forks for all
processes that run tests, and ends with the last of them.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.short_measurements import short_measurements
from tests.solved_once import solved_once
from tests.torch_kept import garbage_kept, torch_kept
from tests.traced_once import traced_once

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parent.parent


class Process:
    """A process of a `Server`; used like `subprocess.Popen`, with what the tests need of that."""

    def __init__(self, stdout: IO[str], stderr: IO[str] | None, said: IO[str]) -> None:
        self.stdout, self.stderr, self._said = stdout, stderr, said
        self.pid = int(said.readline())
        self.returncode: int | None = None
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def _listen(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(int(self._said.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        for file in (self.stdout, self.stderr, self._said):
            if file is not None:
                file.close()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._listening.join(timeout)
        assert self.returncode is not None, f"process {self.pid} has not ended within {timeout} s"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what it has still written, less than a pipe holds, when it has ended."""
        self.wait(timeout)
        with self:
            return self.stdout.read(), self.stderr.read() if self.stderr is not None else ""

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Server:
    """The server that has its socket in a directory; started by whoever comes first."""

    def __init__(self, directory: Path) -> None:
        address = directory / "warm"
        self._connection = socket.socket(socket.AF_UNIX)
        self._process: subprocess.Popen[bytes] | None = None
        with (directory / "warm.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._connection.connect(str(address))
            except OSError:
                address.unlink(missing_ok=True)
                self._start(address)
                self._connection.connect(str(address))

    def _start(self, address: Path) -> None:
        command = [sys.executable, "-m", "tests.warm", address]
        # sets have another order than here, always
        seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed}
        with address.with_suffix(".log").open("w") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", address.with_suffix(".log").read_text()

    def run(
        self,
        module: str,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        stderr: IO[Any] | None = None,
        ignored: Sequence[str] = (),
        new_session: bool = False,
    ) -> Process:
        """Run a module as `python -m` would.

        `ignored` are the signals that it does not hear, as a job in the background of a script does not hear SIGINT; to
        the others it answers as the system does, however the tests were started.
        """
        said, their_said = os.pipe()
        out, their_out = os.pipe()
        errors, their_errors = (None, os.dup(stderr.fileno())) if stderr is not None else os.pipe()
        variables = {**os.environ, **(environment or {})}
        wanted = (module, list(map(str, arguments)), variables, list(ignored), new_session)
        with tempfile.TemporaryFile() as order:  # a message on the socket has a limit
            order.write(json.dumps(wanted).encode())
            order.flush()
            socket.send_fds(self._connection, [b"run"], [order.fileno(), their_out, their_errors, their_said])
        for file in (their_out, their_errors, their_said):
            os.close(file)
        return Process(os.fdopen(out), None if errors is None else os.fdopen(errors), os.fdopen(said))

    def close(self) -> None:
        """Let it go; whoever has started it waits until all have."""
        self._connection.close()
        if self._process is not None:
            self._process.communicate()


@dataclass(frozen=True)
class _Order:
    """What a forked process runs; the files are input, output, errors, and the pipe to tell its number and end."""

    module: str
    arguments: list[str]
    variables: dict[str, str]
    ignored: list[str]
    new_session: bool
    files: list[int]


def _serve(address: str) -> _Order | None:
    """Fork for all who ask. Returns in a forked process with what it has to run, and None when all have gone."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    os.write(1, b"ready\n")
    connections: list[socket.socket] = []
    while True:
        for ready in select.select([listening, *connections], [], [])[0]:
            if ready is listening:
                connections.append(listening.accept()[0])
                continue
            message, files, _, _ = socket.recv_fds(ready, 16, 4)
            if not message:
                connections.remove(ready)
                ready.close()
                if not connections:
                    return None
                continue
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if os.fork() == 0:
                for other in (listening, *connections):
                    other.close()
                with os.fdopen(files[0]) as file:
                    file.seek(0)
                    order = json.load(file)
                return _fork(_Order(*order, files[1:]))
            for file in files:
                os.close(file)


def _fork(order: _Order) -> _Order:
    """Fork the process itself, and wait for it here, to tell how it ends."""
    *files, said = order.files
    pid = os.fork()
    if pid != 0:
        for file in files:
            os.close(file)
        os.setsid()  # not to be stopped with it
        with os.fdopen(said, "w") as tell:
            tell.write(f"{pid}\n")
            tell.flush()
            tell.write(f"{os.waitpid(pid, 0)[1]}\n")
        os._exit(0)
    os.close(said)
    for place, file in enumerate((os.open(os.devnull, os.O_RDONLY), *files)):
        os.dup2(file, place)
        os.close(file)
    if order.new_session:
        os.setsid()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN if name in order.ignored else signal.SIG_DFL)
    if "SIGINT" not in order.ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order.variables)
    sys.argv[1:] = order.arguments
    return order


def _warm(directory: Path) -> None:
    """Take a network through all that a command makes once in a process."""
    from tests.commands import TINY, done

    os.environ["SMPQ_STATE"] = str(directory / "state")
    with suppress(ImportError):  # torch imports it where it is installed
        import tqdm

        tqdm.tqdm.monitor_interval = 0  # a thread, which a forked process would not have
    done("run", *TINY, "--budget", "size=0.9x", "--out", directory / "run", "--quiet")


def _main() -> int | None:
    """Serve, and return the exit code of what is run in a forked process; None in the server."""
    with garbage_kept(), torch_kept(), traced_once(), solved_once(), short_measurements():
        with tempfile.TemporaryDirectory() as scratch:
            _warm(Path(scratch))
        gc.collect()
        gc.freeze()
        order = _serve(sys.argv[1])
        return None if order is None else _run(order)


def _run(order: _Order) -> int:
    """Run the module as the interpreter does, and return its exit code."""
    try:
        runpy.run_module(order.module, run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:  # noqa: BLE001 - a KeyboardInterrupt too is told, and ends the process
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    code = _main()
    if code is not None:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # onnxruntime would wait for a thread of its own, which did not come along
