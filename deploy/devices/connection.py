"""Commands and files over the system's ssh and scp, with the user's own configuration and keys; a lost connection is told apart."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from calib.errors import UserError

OPTIONS_VARIABLE = "SMPQ_SSH_OPTIONS"
_LOST = 255
_DEFAULT_OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4",
)  # fmt: skip
_TODO = {
    r"Permission denied \(": "the login is refused: check the user, and that the device has your key (ssh-copy-id), since nobody is "
    "asked for a password",
    r"Host key verification failed|IDENTIFICATION HAS CHANGED": "the key of the host is not known here, or has changed: connect once by "
    "hand with ssh and check it",
    r"Could not resolve hostname|Name or service not known": "the host is unknown: check the address, or your ssh configuration",
    r"Bad configuration option|unknown option|illegal option|command-line: line": f"ssh does not take its options: check {OPTIONS_VARIABLE}",
    r": Permission denied$|Read-only file system": "the device does not let you write into ~/.cache: change its permissions",
    r"No space left on device": "the device has no space left: free some of it",
}


class Dropped(Exception):  # noqa: N818 - the name says what happened
    """The connection is lost, or could not be made; another attempt may succeed."""


class RemoteFailed(Exception):  # noqa: N818 - the name says what happened
    """A command on the other machine ended with `code`, and wrote `errors` to its standard error."""

    def __init__(self, code: int, errors: str) -> None:
        super().__init__(last_line(errors) or f"exit code {code}")
        self.code = code
        self.errors = errors


@dataclass(frozen=True)
class Address:
    """Where to connect to, and the Python to use there; None leaves user and port to ssh and its configuration."""

    text: str
    host: str
    user: str | None
    port: int | None
    python: str

    @classmethod
    def from_text(cls, text: str) -> Address:
        """Read "ssh://user@host:port?python=/path/python"; UserError when it is no such address."""
        todo = "write ssh://user@host, with the port behind it if it is not 22, as in ssh://me@orin.local:2222"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise UserError(f"{text} is no address ({error}): {todo}") from error
        query = parse_qs(parts.query)
        if parts.scheme != "ssh" or not parts.hostname or parts.path not in ("", "/") or parts.password or set(query) - {"python"}:
            raise UserError(f"{text} is no address: {todo}; ?python=/path/python3 may follow")
        if parts.hostname.startswith("-") or (parts.username or "").startswith("-"):
            raise UserError(f"{text} is no address, a name starts with a dash: {todo}")
        return cls(text, parts.hostname, parts.username, port, query.get("python", ["python3"])[0])


class Connection:
    """Each call is a connection of its own. Raises Dropped, RemoteFailed, or UserError when another attempt would fail as well."""

    def __init__(self, address: Address) -> None:
        """`address` says where to; options for ssh and scp may be added in SMPQ_SSH_OPTIONS."""
        self._address = address
        options = [*shlex.split(os.environ.get(OPTIONS_VARIABLE, "")), *_DEFAULT_OPTIONS]
        if address.user is not None:
            options += ["-o", f"User={address.user}"]
        if address.port is not None:
            options += ["-o", f"Port={address.port}"]
        self._options = options

    def run(self, script: str, text: str = "") -> str:
        """Run a script of the shell sh in the home directory, with `text` as its input; returns its output."""
        lines: list[str] = []
        self._call(self._ssh(script), lines.append, text)
        return "\n".join(lines)

    def stream(self, script: str, announce: Callable[[str], None]) -> None:
        """Run a script, and announce each line of its output as it comes."""
        self._call(self._ssh(script), announce)

    def send(self, files: Sequence[Path], directory: str) -> None:
        """Copy files into a directory below the home directory."""
        self._call(["scp", "-q", *self._options, "--", *map(str, files), self._remote(directory)], copying=True)

    def fetch(self, path: str, file: Path) -> None:
        """Copy a file from below the home directory to `file`."""
        self._call(["scp", "-q", *self._options, "--", self._remote(path), str(file)], copying=True)

    def _ssh(self, script: str) -> list[str]:
        # The login shell may be any, so sh is asked for.
        return ["ssh", *self._options, "--", self._address.host, f"sh -c {shlex.quote(script)}"]

    def _remote(self, path: str) -> str:
        host = self._address.host
        return f"[{host}]:{path}" if ":" in host else f"{host}:{path}"

    def _call(self, command: list[str], announce: Callable[[str], object] = str, text: str = "", *, copying: bool = False) -> None:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as given, tempfile.TemporaryFile("w+") as errors:
            given.write(text)
            given.seek(0)
            code = _run(command, given.fileno(), errors.fileno(), announce)
            errors.seek(0)
            self._check(code, errors.read(), copying=copying)

    def _check(self, code: int, errors: str, *, copying: bool) -> None:
        if code == 0:
            return
        if code == _LOST or copying:
            for pattern, todo in _TODO.items():
                if re.search(pattern, errors, re.MULTILINE):
                    raise UserError(f"{self._address.text}: {todo} ({last_line(errors)})")
            raise Dropped(last_line(errors) or "no reason given")
        raise RemoteFailed(code, errors)


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _run(command: list[str], given: int, errors: int, announce: Callable[[str], object]) -> int:
    """Run a program of this machine, hand on each line of its output, and return its exit code."""
    try:
        process = subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace")
    except FileNotFoundError as error:
        raise UserError(f"there is no {command[0]} on this machine: install OpenSSH's client") from error
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                announce(line.rstrip("\n"))
        except BaseException:
            process.kill()
            raise
    return process.returncode
