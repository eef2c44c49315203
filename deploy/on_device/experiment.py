"""The files of an experiment's directory: `experiment.json` is read, `measurements.json` is written after each candidate."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from deploy.on_device.errors import DeviceError

SCHEMA = 1
EXPERIMENT_FILE = "experiment.json"
MEASUREMENTS_FILE = "measurements.json"
STARTED_FILE = "started.json"
LOCK_FILE = "runner.lock"
CACHE_DIRECTORY = "cache"
_WAIT_S = 1.0
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "schema": int,
    "runtime": str,
    "float": dict,
    "candidates": list,
    "inputs": str,
    "batch": int,
    "protocol": dict,
    "seed": int,
    "fingerprint": str,
    "label": str,
}
_PROTOCOL_FIELDS = {"rounds": int, "round_ms": (int, float), "calls": int, "singles": int}
_CANDIDATE_FIELDS = {"name": str, "model": str, "settings": dict}


def read_experiment(directory: Path) -> dict[str, Any]:
    """Read and check `experiment.json`; DeviceError when it is missing, damaged, or of another version."""
    file = directory / EXPERIMENT_FILE
    if not file.is_file():
        raise DeviceError(f"there is no {file}: name the directory that smpq bundle has written")
    data = _read_json(file, "write the bundle again")
    _check(data, _FIELDS, file)
    _check(data["protocol"], _PROTOCOL_FIELDS, file)
    for entry in (data["float"], *data["candidates"]):
        _check(entry, _CANDIDATE_FIELDS, file)
        if not (directory / entry["model"]).is_file():
            raise DeviceError(f"the model {directory / entry['model']} is missing: copy the whole directory again")
    return dict(data)


def read_inputs(file: Path) -> dict[str, np.ndarray]:
    """Read the inputs of the engines by name; DeviceError when the file is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DeviceError(f"{file} cannot be read ({error}): copy the whole directory again") from error


def result_key(experiment: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """Hash everything that a candidate's figures depend on, the device apart: a result with this key need not be measured again."""
    parts = {name: experiment[name] for name in ("runtime", "inputs", "batch", "protocol", "seed", "fingerprint")}
    models = [{"name": entry["name"], "settings": entry["settings"]} for entry in (experiment["float"], candidate)]
    text = json.dumps([parts, models], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_measurements_file(file: Path) -> dict[str, Any] | None:
    """Read what has been measured, None when that is nothing; DeviceError when the file is damaged."""
    if not file.is_file():
        return None
    todo = "delete it to measure again"
    data = _read_json(file, todo)
    wanted = {"schema": int, "fingerprint": str, "runtime": str, "versions": dict, "machine": str, "state": dict, "results": list}
    _check(data, wanted, file, todo)
    for entry in data["results"]:
        _check(entry, {"key": str, "name": str}, file, todo)
    return dict(data)


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write a file that is there in full or not at all, even when the power fails."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


@contextmanager
def locked(directory: Path, announce: Callable[[str], None], while_waiting: Callable[[], None]) -> Iterator[None]:
    """Be the only one that measures in a directory; waits for another one, and calls `while_waiting` every second.

    The lock goes with the process that holds it, however that ends.
    """
    if sys.platform == "win32":
        yield  # runners are started over ssh, where two could meet, on Linux only
        return
    with (directory / LOCK_FILE).open("a", encoding="utf-8") as stream:
        if not _taken(stream):
            announce("another runner is at work in this directory: waiting for it")
            while not _taken(stream):
                time.sleep(_WAIT_S)
                while_waiting()
        yield


def _taken(stream: TextIO) -> bool:
    """Take the lock if nobody has it."""
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def watched(directory: Path, key: str) -> Iterator[int]:
    """Remember in a file what is being measured; yields how often in a row the process has died over it, as when memory runs out."""
    file = directory / STARTED_FILE
    earlier = _read_json(file, "delete it") if file.is_file() else {}
    deaths = int(earlier.get("times", 0)) if earlier.get("key") == key else 0
    write_json(file, {"key": key, "times": deaths + 1})
    try:
        yield deaths
    finally:
        file.unlink(missing_ok=True)


def _read_json(file: Path, todo: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeviceError(f"{file} cannot be read ({error}): {todo}") from error


def _check(data: Any, fields: Mapping[str, Any], file: Path, todo: str = "write the bundle again") -> None:
    if not isinstance(data, dict):
        raise DeviceError(f"{file} is damaged ({data!r:.60} is no object): {todo}")
    if data.get("schema", SCHEMA) != SCHEMA:
        raise DeviceError(f"{file} has schema {data['schema']}, this program reads {SCHEMA}: {todo}")
    wrong = [name for name, kind in fields.items() if not isinstance(data.get(name), kind) or isinstance(data.get(name), bool)]
    if wrong:
        raise DeviceError(f"{file} is damaged ({', '.join(wrong)} missing or of the wrong type): {todo}")
