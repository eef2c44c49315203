"""The ssh servers that the tests measure over: one of the package index, and OpenSSH's where it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.deploy.devices import asyncsshd, sshd

SERVERS = ("asyncssh", "openssh") if sshd.program() is not None else ("asyncssh",)
"""OpenSSH's where there is one: the same tests pass over either, so that none is left out on a machine without it."""


class Server(Protocol):
    """A running server: `address` for a device, `options` for ssh, and the home directory that logins have there."""

    @property
    def address(self) -> str: ...

    @property
    def options(self) -> str: ...

    @property
    def home(self) -> Path: ...

    def cut_connections(self) -> int:
        """End all connections as when a network fails; returns how many. What they started goes on."""


@contextmanager
def serving(name: str, directory: Path) -> Iterator[Server]:
    """Start a server, and wait until it answers; skips the test where it, or OpenSSH's client, is not installed."""
    for tool in ("ssh", "scp"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install openssh-client")
    with (asyncsshd if name == "asyncssh" else sshd).serving(directory) as server:
        yield server
