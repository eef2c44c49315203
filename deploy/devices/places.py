"""Directories that belong to one machine, or to one run."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

from calib.storage import read_record, write_record
from deploy.devices.messages import Place

PLACE_FILE = "place.json"
_LONGEST_NAME = 40


def machine_directory(directory: Path, machine: str) -> Path:
    """Return the directory below `directory` for what a machine has measured: its name in letters, and the hash of all of it."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", machine).strip("-")[:_LONGEST_NAME]
    return directory / f"{readable}-{hashlib.sha256(machine.encode()).hexdigest()[:8]}"


def run_name(directory: Path) -> str:
    """Return eight digits that no other run has: of a random name kept in `directory`, and of its path, since a run may be copied."""
    file = directory / PLACE_FILE
    if not file.is_file():
        write_record(file, Place(name=secrets.token_hex(8)))
    name = read_record(file, Place, repair="delete it").name
    return hashlib.sha256(f"{name} {directory.resolve()}".encode()).hexdigest()[:8]
