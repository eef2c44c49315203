"""Commands and files over the system's ssh and scp, with the user's own configuration and keys; a lost connection is
told apart.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from calib.errors import UserError
from deploy.devices.messages import LARGEST_MESSAGE_BYTES
from deploy.devices.process import Lines, TooMuchOutput, run_program
from deploy.terminal.printable import printable

OPTIONS_VARIABLE = "SMPQ_SSH_OPTIONS"
PYTHON_MISSING, DIED = 127, 128
"""Exit codes of a shell: it does not find the program; above, the program ended with the signal of so much more."""
_LOST = 255
_LONGEST_BYTES = 4096
"""Of one line."""
_MOST_ANSWER_BYTES = 4 << 20
_MOST_OUTPUT_BYTES = 16 << 20
_DEFAULT_OPTIONS = (
    "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4",
)  # fmt: skip
_ADVICE = {
    r"Permission denied \(": "the login is refused: check the user, and that the device has your key (ssh-copy-id), "
    "since nobody is asked for a password",
    r"Host key verification failed|IDENTIFICATION HAS CHANGED": "the key of the host is not known here, or has "
    "changed: connect once by hand with ssh and check it",
    r"Could not resolve hostname|Name or service not known": "the host is unknown: check the address, "
    "or your ssh configuration",
    r"Bad configuration option|unknown option|illegal option|command-line: line": "ssh does not take its options: "
    f"check {OPTIONS_VARIABLE}",
    r": Permission denied$|Read-only file system": "the device does not let you write into ~/.cache: "
    "change its permissions",
    r"No space left on device": "the device has no space left: free some of it",
    # of SFTP, which has no word for a full disk
    r"^scp: .*\bFailure$": "the device cannot write what it is sent: see with df -h ~/.cache whether its disk is full",
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
        login, _, place = parts.netloc.rpartition("@")
        user = unquote(login.partition(":")[0])
        # as it is written: ssh tells large letters from small ones in the names of its configuration
        host = unquote(place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0])
        options = [part.partition("=") for part in parts.query.split("&") if part]
        query = {name: unquote(value) for name, _, value in options}  # a plus is a plus there, too
        if (
            parts.scheme != "ssh"
            or not host
            or parts.path not in ("", "/")
            or parts.password
            or parts.fragment
            or set(query) - {"python"}
        ):
            raise UserError(f"{text} is no address: {todo}; ?python=/path/python3 may follow")
        if not (user + host).isprintable() or host.startswith("-") or user.startswith("-"):
            raise UserError(f"{text} is no address, a name starts with a dash or cannot be printed: {todo}")
        return cls(text, host, user or None, port, query.get("python") or "python3")

    @property
    def python_word(self) -> str:
        """The Python as a word of a shell there. A path that is not absolute, or begins with ~, is below the home
        directory.
        """
        path = self.python.removeprefix("~/")
        below = path != self.python or ("/" in path and not path.startswith("/"))
        return f'"$HOME"/{shlex.quote(path)}' if below else shlex.quote(path)


class Connection:
    """Each call is a connection of its own. Raises Dropped, RemoteFailed, or UserError when another attempt would fail
    as well.
    """

    def __init__(self, address: Address) -> None:
        """`address` says where to; options for ssh and scp may be added in SMPQ_SSH_OPTIONS: UserError when these
        cannot be read.
        """
        self._address = address
        options = [*ssh_options(), *_DEFAULT_OPTIONS]
        if address.user is not None:
            options += ["-o", f"User={address.user}"]
        if address.port is not None:
            options += ["-o", f"Port={address.port}"]
        self._options = options

    def run(self, script: str, text: str = "") -> str:
        """Run a script of the shell sh in the home directory, with `text` as its input; returns its output."""
        lines: list[str] = []
        self._call(self._ssh(script), Lines(lines.append, _LONGEST_BYTES), _MOST_ANSWER_BYTES, text)
        return "\n".join(lines)

    def run_python(self, program: str) -> str:
        """Give a program to the Python there, on its standard input; returns its output."""
        return self.run(f"{self._address.python_word} -; exit $?", program)

    def stream(self, script: str, announce: Callable[[str], None]) -> None:
        """Run a script, and announce each line of its output as it comes, cut and without what a terminal would not
        print.
        """
        self._call(self._ssh(script), Lines(lambda line: announce(printable(line)), _LONGEST_BYTES), _MOST_OUTPUT_BYTES)

    def send(self, files: Sequence[Path], directory: str) -> None:
        """Copy files into a directory below the home directory."""
        # An absolute path is never an option, nor a file of another host, whatever characters it has.
        paths = [str(file.absolute()) for file in files]
        self._call(
            ["scp", "-q", *self._options, "--", *paths, self._remote(directory)],
            Lines(str, _LONGEST_BYTES),
            _MOST_OUTPUT_BYTES,
        )

    def fetch(self, path: str, file: Path, most_bytes: int = LARGEST_MESSAGE_BYTES) -> None:
        """Copy a file of at most `most_bytes` from below the home directory to `file`."""
        with file.open("wb") as stream:
            self._call(self._ssh(f"cat {shlex.quote(path)}"), stream.write, most_bytes)

    def _ssh(self, script: str) -> list[str]:
        # The login shell may be any, so sh is asked for.
        return ["ssh", *self._options, "--", self._address.host, f"sh -c {shlex.quote(script)}"]

    def _remote(self, path: str) -> str:
        host = self._address.host
        return f"[{host}]:{path}" if ":" in host else f"{host}:{path}"

    def _call(self, command: list[str], take: Callable[[bytes], object], most_bytes: int, text: str = "") -> None:
        try:
            code, errors = run_program(command, text, take, most_bytes)
        except TooMuchOutput as error:
            raise UserError(f"{self._address.text}: {error}") from error
        if isinstance(take, Lines):
            take.end()
        self._check(code, errors, copying=command[0] == "scp")

    def _check(self, code: int, errors: str, *, copying: bool) -> None:
        if code == 0:
            return
        if code == _LOST or code < 0 or copying:  # ssh here was killed, say, below zero
            for pattern, advice in _ADVICE.items():
                if re.search(pattern, errors, re.MULTILINE):
                    raise UserError(f"{self._address.text}: {advice} ({last_line(errors)})")
            raise Dropped(last_line(errors) or "no reason given")
        raise RemoteFailed(code, errors)


def ssh_options() -> list[str]:
    """Return the options for ssh and scp in SMPQ_SSH_OPTIONS; UserError when they cannot be read."""
    try:
        return shlex.split(os.environ.get(OPTIONS_VARIABLE, ""))
    except ValueError as error:
        raise UserError(f"{OPTIONS_VARIABLE} cannot be read ({error}): correct it, or unset it") from error


def last_line(text: str) -> str:
    """Return the last line that is not empty, as it may be printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1]) if lines else ""
