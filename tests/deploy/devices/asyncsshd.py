"""An ssh server of asyncssh in a process of its own, with a home directory of its own: python asyncsshd.py
DIRECTORY.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import asyncssh

_CUT = "cut"
_LAST_WORDS_S = 5.0


@dataclass(frozen=True)
class AsyncServer:
    """A running server; see `tests.deploy.devices.servers.Server`."""

    process: subprocess.Popen[str]
    port: int
    directory: Path

    @property
    def home(self) -> Path:
        return self.directory / "home"

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
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{_CUT}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def serving(directory: Path) -> Iterator[AsyncServer]:
    """Start a server, and wait until it answers."""
    command = [sys.executable, Path(__file__), directory]
    with (
        (directory / "server.log").open("w") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port:
            raise RuntimeError((directory / "server.log").read_text())
        try:
            yield AsyncServer(process, int(port), directory)
        finally:
            process.kill()


class _Login(asyncssh.SSHServer):
    """Notes the connections that are open."""

    def __init__(self, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections
        self._own: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._own = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._own)


class _Files(asyncssh.SFTPServer):
    """Files below a directory. Tells how it ended, as OpenSSH's does: scp takes silence for a failure."""

    def __init__(self, channel: asyncssh.SSHServerChannel, home: Path) -> None:
        super().__init__(channel, chroot=os.fsencode(home))

    def exit(self) -> None:
        self.channel.exit(0)


async def _serve(directory: Path) -> None:
    """Serve until the input ends; every line of it cuts all connections, and is answered by their number."""
    home, connections = directory / "home", set()
    home.mkdir()
    keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host_key", "user_key")}
    for name, key in keys.items():
        key.write_private_key(directory / name)
        (directory / name).chmod(0o600)
    keys["user_key"].write_public_key(directory / "authorized_keys")
    listening = await asyncssh.create_server(
        lambda: _Login(connections), "127.0.0.1", 0, server_host_keys=[keys["host_key"]], encoding=None, allow_scp=True,
        authorized_client_keys=str(directory / "authorized_keys"),
        process_factory=lambda process: _execute(process, home), sftp_factory=lambda channel: _Files(channel, home),
    )  # fmt: skip
    public = keys["host_key"].export_public_key().decode()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{listening.get_port()} {public}")
    _answer(listening.get_port())
    while await asyncio.to_thread(sys.stdin.readline):
        found = list(connections)
        for connection in found:
            connection.abort()
        _answer(len(found))


async def _execute(process: asyncssh.SSHServerProcess[bytes], home: Path) -> None:
    """Run a command in the home directory, as a login shell does. It goes on when the connection ends, and notices when
    it writes.
    """
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "USER": getpass.getuser(), "LANG": "C.UTF-8"}
    # it only starts here, and one of asyncio would be ended with the connection
    child = subprocess.Popen(  # noqa: ASYNC220
        ["sh", "-c", process.command or "exit"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=home, env=environment, start_new_session=True,
    )  # fmt: skip
    fed = asyncio.create_task(_feed(process.stdin, child.stdin))
    # all that the child has written is sent before its exit code, which ends the channel
    pumps = asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
    while (code := child.poll()) is None:  # noqa: ASYNC110 - a process sets no event
        await asyncio.sleep(0.01)
    await asyncio.wait([pumps], timeout=_LAST_WORDS_S)  # a grandchild may hold the pipes open
    fed.cancel()
    with suppress(asyncssh.Error, OSError):
        process.exit(code if code >= 0 else 128 - code)


async def _feed(source: asyncssh.SSHReader[bytes], sink: BinaryIO) -> None:
    """Give a child its input: what asyncssh redirects loses its end when it is more than a pipe holds."""
    with suppress(asyncssh.Error, OSError), sink:
        while data := await source.read(1 << 16):
            await asyncio.to_thread(sink.write, data)


async def _pump(source: BinaryIO, sink: asyncssh.SSHWriter[bytes]) -> None:
    """Send what a pipe gives until it ends. When the connection has, the pipe is closed, and its writer notices."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), source
    )
    try:
        while data := await reader.read(1 << 16):
            sink.write(data)
            await sink.drain()
    except (asyncssh.Error, OSError):
        transport.close()


def _answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
