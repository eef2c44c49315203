"""Ask a machine what it has: this one, or one that is reached over ssh. Nothing is left there."""

from __future__ import annotations

import subprocess
import sys

from calib.errors import UserError
from calib.files.storage import record_from_text
from deploy.devices.connection import (
    DIED,
    OPTIONS_VARIABLE,
    PYTHON_MISSING,
    Address,
    Connection,
    Dropped,
    RemoteFailed,
)
from deploy.devices.runner_zip import program_text
from deploy.doctor.facts import Answer
from deploy.terminal.printable import printable

_OLDEST_PYTHON = (3, 9)
"""The first that understands what examines a machine."""
_EXAMINE = "from deploy.runner.doctor import main; sys.exit(main(sys.argv[1:]))"
_TOO_OLD = 'print(\'{"python": [%d, %d, %d], "facts": null}\' % tuple(sys.version_info[:3]))'
_LOCAL_SECONDS = 300


def doctor_program() -> str:
    """Return the program that a machine's Python is given on its standard input."""
    return program_text(_EXAMINE, _OLDEST_PYTHON, _TOO_OLD)


def ask_here(*arguments: str) -> Answer:
    """Ask this machine, in a process of its own; UserError when that process fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-", *arguments],
            input=doctor_program().encode(),
            capture_output=True,
            timeout=_LOCAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"this machine did not say in {_LOCAL_SECONDS} s what it has: look for a library or a disk that hangs"
        ) from error
    if done.returncode != 0:
        reason = printable(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        raise UserError(f"{sys.executable} does not say what this machine has (exit code {done.returncode}): {reason}")
    return _read(done.stdout.decode(errors="replace"), "its Python must not print anything when it starts")


def ask_over_ssh(text: str) -> Answer:
    """Ask the machine at an address such as ssh://user@host; UserError when it cannot be reached, or has no Python,
    with what to do.
    """
    address = Address.from_text(text)
    try:
        answer = Connection(address).run_python(doctor_program())
    except Dropped as error:
        raise UserError(
            f"{text}: cannot be reached ({error}): check that ssh {address.host} true works; {OPTIONS_VARIABLE} adds "
            "options"
        ) from error
    except RemoteFailed as error:
        if error.code == PYTHON_MISSING:
            raise UserError(
                f"{text}: there is no {address.python}: sudo apt install python3, or name another one with "
                "?python=/path/python3"
            ) from error
        died = f"died with signal {error.code - DIED}" if error.code > DIED else f"ended with exit code {error.code}"
        raise UserError(
            f"{text}: its {address.python} {died} when it was asked what the machine has: {error}"
        ) from error
    try:
        return _read(answer, "a login there must not print anything")
    except UserError as error:
        raise UserError(f"{text}: {error}") from error


def _read(text: str, todo: str) -> Answer:
    try:
        return record_from_text(text, Answer, "its answer", todo)
    except UserError as error:
        raise UserError(f"it answers {printable(text, 80)!r}: {printable(str(error))}") from error
