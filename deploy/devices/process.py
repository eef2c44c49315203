"""Programs of this machine whose output is taken as it comes, in bounded amounts."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
import threading
from collections.abc import Callable

from calib.errors import UserError

_CHUNK_BYTES = 1 << 16
_KEPT_ERRORS_BYTES = 1 << 16
_MOST_ERRORS_BYTES = 64 << 20


class TooMuchOutput(UserError):  # noqa: N818 - the name says what is wrong
    """A program writes more than there can be to say; it was stopped."""


class Lines:
    """Splits bytes into lines and hands each on, cut to `longest` bytes. Nothing else of a longer line is kept."""

    def __init__(self, announce: Callable[[str], object], longest: int) -> None:
        self._announce = announce
        self._longest = longest
        self._begun = b""

    def __call__(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *complete, begun = chunk.split(b"\n")
        for line in complete:
            self._announce(self._cut(self._begun + line))
            self._begun = b""
        self._begun = (self._begun + begun)[: self._longest]

    def end(self) -> None:
        """Hand on a last line that has no end."""
        if self._begun:
            self._announce(self._cut(self._begun))
            self._begun = b""

    def _cut(self, line: bytes) -> str:
        return line[: self._longest].decode(errors="replace").rstrip("\r")


def run_program(command: list[str], text: str, take: Callable[[bytes], object], most_bytes: int) -> tuple[int, str]:
    """Run a program with `text` as its input, hand its output to `take`, and return its exit code and the end of its
    errors.

    Raises UserError when the program is missing, TooMuchOutput when it writes more than `most_bytes`. It does not
    outlive an exception.
    """
    with tempfile.TemporaryFile() as given:
        given.write(text.encode())
        given.seek(0)
        errors_out, errors_in = os.pipe()
        try:
            process = subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=errors_in)
        except OSError as error:
            os.close(errors_out)
            os.close(errors_in)
            if not isinstance(error, FileNotFoundError):
                raise
            raise UserError(f"there is no {command[0]} on this machine: install OpenSSH's client") from error
    errors = _Errors(errors_out, errors_in, process.kill)
    with errors, process:
        assert process.stdout is not None
        total = 0
        try:
            while chunk := os.read(process.stdout.fileno(), _CHUNK_BYTES):
                total += len(chunk)
                if total > most_bytes:
                    raise TooMuchOutput(_too_much(most_bytes))
                take(chunk)
        except BaseException:
            process.kill()
            raise
    text_of_errors = errors.text()
    if errors.too_many:
        raise TooMuchOutput(_too_much(_MOST_ERRORS_BYTES))
    return process.returncode, text_of_errors


def _too_much(most_bytes: int) -> str:
    return f"more than {most_bytes / 1e6:.0f} MB came from it, which cannot be right: look at what it prints"


class _Errors:
    """Reads what a program writes to its standard error, and keeps the end of it. Calls `stop` when that is far too
    much.

    A process that ssh leaves behind for later connections keeps the pipe open, so that its end is not that of the
    program. The end is therefore marked in the pipe itself, behind all that the program has written.
    """

    def __init__(self, source: int, sink: int, stop: Callable[[], None]) -> None:
        self._source = source
        self._sink = sink
        self._stop = stop
        self._kept = b""
        self._mark = os.urandom(16)
        self._ended = threading.Event()
        self.too_many = False
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> None:
        """Nothing is left to do."""

    def __exit__(self, *_: object) -> None:
        """Mark the end of what the program, which has ended, has written.

        ssh makes its pipes non-blocking, and a killed one leaves them so: a full pipe takes nothing until it is read.
        """
        room = select.poll()
        room.register(self._sink, select.POLLOUT)
        marked = 0
        while not marked:
            room.poll()
            with contextlib.suppress(BlockingIOError):
                marked = os.write(self._sink, self._mark)
        os.close(self._sink)

    def text(self) -> str:
        """Return the end of it, once the program has ended."""
        self._ended.wait()
        return self._kept.decode(errors="replace")

    def _read(self) -> None:
        total, kept = 0, b""
        try:
            while chunk := os.read(self._source, _CHUNK_BYTES):
                total += len(chunk)
                if total > _MOST_ERRORS_BYTES:
                    self.too_many = True
                    self._stop()
                kept += chunk
                if self._mark in kept and not self._ended.is_set():
                    self._kept = kept[: kept.index(self._mark)]
                    self._ended.set()
                kept = kept[-_KEPT_ERRORS_BYTES:]
        finally:
            os.close(self._source)
