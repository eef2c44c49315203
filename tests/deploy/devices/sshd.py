"""An OpenSSH server of the test's own on loopback, with its own keys."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/user_key.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class OpenSshServer:
    """A running server; see `tests.deploy.devices.servers.Server`. Logins have the home directory of the user."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path

    @property
    def home(self) -> Path:
        return Path.home()

    @property
    def address(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}?python={sys.executable}"

    @property
    def options(self) -> str:
        return (
            f"-i {self.directory}/user_key -o IdentitiesOnly=yes -F none "
            f"-o UserKnownHostsFile={self.directory}/known_hosts"
        )

    def cut_connections(self) -> int:
        """Kill the processes that serve the connections, as when a network fails; returns how many. What they started
        goes on.
        """
        serving = [pid for pid in _descendants(self.process.pid) if _command(pid).startswith("sshd")]
        for pid in serving:
            os.kill(pid, signal.SIGKILL)
        return len(serving)


def program() -> str | None:
    """Return the path of OpenSSH's server; None where it is not installed."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin")


@contextmanager
def serving(directory: Path) -> Iterator[OpenSshServer]:
    """Start a server, and wait until it answers; skips the test where that cannot be had."""
    path = program()
    assert path is not None, "servers.SERVERS names it only where it is"
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen: apt-get install openssh-client")
    directory.chmod(0o700)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    port = _free_port()
    public = (directory / "host_key.pub").read_text()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    (directory / "sshd_config").write_text(_CONFIG.format(port=port, directory=directory))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # the server wants it for its unprivileged half
    with (directory / "sshd.log").open("wb") as log:
        process = subprocess.Popen([path, "-D", "-e", "-f", directory / "sshd_config"], stderr=log)
    try:
        _wait(process, port, directory / "sshd.log")
        yield OpenSshServer(process, port, directory)
    finally:
        process.terminate()
        process.wait(10)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"OpenSSH's server does not start here: {log.read_text().strip()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.skip("OpenSSH's server does not answer within 10 seconds")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _descendants(pid: int) -> list[int]:
    children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [other for child in children for other in _descendants(child)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""  # it has ended
