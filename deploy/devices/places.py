"""Directories that belong to one machine, or to one run."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

import msgspec

from calib.files.storage import read_record, write_record
from deploy.devices.messages import Place, Used

PLACE_FILE = "place.json"
_LONGEST_NAME = 40


def machine_directory(directory: Path, machine: str) -> Path:
    """Return the directory below `directory` for what a machine has measured: its name in letters, and the hash of all
    of it.
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "-", machine).strip("-")[:_LONGEST_NAME]
    return directory / f"{readable}-{hashlib.sha256(machine.encode()).hexdigest()[:8]}"


def run_name(directory: Path) -> str:
    """Return eight digits that no other run has: a hash of a random name and of the path, since a run may be copied."""
    place = _read(directory)
    if place is None:
        place = Place(name=secrets.token_hex(8))
        write_record(directory / PLACE_FILE, place)
    return hashlib.sha256(f"{place.name} {directory.resolve()}".encode()).hexdigest()[:8]


def used_directories(directory: Path, address: str) -> list[str]:
    """Return the directories on a device that commands of this run have made and not removed, as those that were
    killed.
    """
    place = _read(directory)
    return [used.directory for used in place.used if used.address == address] if place is not None else []


def note_used(directory: Path, address: str, used: str) -> None:
    """Remember a directory on a device before it is made."""
    _change(directory, Used(address=address, directory=used), add=True)


def note_removed(directory: Path, address: str, used: str) -> None:
    """Forget a directory on a device that has been removed."""
    _change(directory, Used(address=address, directory=used), add=False)


def _change(directory: Path, used: Used, *, add: bool) -> None:
    run_name(directory)
    place = read_record(directory / PLACE_FILE, Place)
    others = tuple(each for each in place.used if each != used)
    changed = msgspec.structs.replace(place, used=(*others, used) if add else others)
    if changed != place:
        write_record(directory / PLACE_FILE, changed)


def _read(directory: Path) -> Place | None:
    file = directory / PLACE_FILE
    return read_record(file, Place, repair="delete it") if file.is_file() else None
