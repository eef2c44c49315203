"""What runs on the server, and what its log says."""

from __future__ import annotations

from pathlib import Path

from deploy.devices.bundle import RUNNER_FILE


def measured_in(log: Path) -> list[str]:
    return [line.split()[3].rstrip(":") for line in log.read_text().splitlines() if line.split()[2] == "measured"]


def runners(directory: Path) -> list[int]:
    """The processes that run the runner in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_text().split("\0")
            where = str((process / "cwd").readlink())
        except OSError:
            continue
        if RUNNER_FILE in arguments and where.removesuffix(" (deleted)") == str(directory):
            found.append(int(process.name))
    return found
