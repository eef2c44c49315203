"""The files of an experiment's directory: `experiment.json` is read, `measurements.json` is written after each
candidate.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from deploy.runner.errors import DeviceError
from deploy.runner.hashes import sha256_of
from deploy.runner.writing import write_json

SCHEMA = 4
EXPERIMENT_FILE = "experiment.json"
RESULTS_FILE = "measurements.json"
STARTED_FILE = "started.json"
CRASH_FILE = "crash.log"
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
_NUMBER = (int, float)
_PROTOCOL_FIELDS = {
    "rounds": int, "round_ms": _NUMBER, "calls": int, "singles": int, "sets": int, "seconds": _NUMBER,
}  # fmt: skip
_CANDIDATE_FIELDS = {"name": str, "model": str, "settings": dict, "sha256": (str, type(None))}


def read_experiment(directory: Path) -> dict[str, Any]:
    """Read and check `experiment.json`; DeviceError when it is missing, damaged, or of another version."""
    file = directory / EXPERIMENT_FILE
    if not file.is_file():
        raise DeviceError(f"there is no {file}: name the directory that smpq bundle has written")
    data = _read_json(file, "write the bundle again")
    _check_all(data, _FIELDS, file)
    _check_all(data["protocol"], _PROTOCOL_FIELDS, file)
    if data["batch"] < 1 or min(data["protocol"][name] for name in _PROTOCOL_FIELDS if name != "singles") <= 0:
        raise DeviceError(f"{file} is damaged (batch and protocol must be positive): write the bundle again")
    for entry in (data["float"], *data["candidates"]):
        _check_all(entry, _CANDIDATE_FIELDS, file)
        if not _is_file(directory / entry["model"]):
            raise DeviceError(
                f"the model {directory / entry['model']!s:.200} is missing: copy the whole directory again"
            )
    return dict(data)


def check_model(file: Path, sha256: str | None) -> None:
    """Raise DeviceError when a model is not the one that the bundle was written with: half a file, or another one."""
    if sha256 is not None and model_sha256(file) != sha256:  # without one it was not carried
        raise DeviceError(f"the content of {file} is not what was written: copy the whole directory again")


def model_sha256(file: Path) -> str:
    """Hash an ONNX file, and the file that holds its weights where they are many."""
    return sha256_of(*(part for part in (file, file.with_name(f"{file.name}.data")) if part.is_file()))


def read_inputs(file: Path) -> dict[str, np.ndarray]:
    """Read the inputs of the engines by name; DeviceError when the file is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DeviceError(f"{file} cannot be read ({error}): copy the whole directory again") from error


def result_key(experiment: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """Hash everything that a candidate's figures depend on, the device apart: a result with this key need not be
    measured again.
    """
    parts = {name: experiment[name] for name in ("runtime", "inputs", "batch", "protocol", "seed", "fingerprint")}
    models = [{"name": entry["name"], "settings": entry["settings"]} for entry in (experiment["float"], candidate)]
    text = json.dumps([parts, models], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_results_file(file: Path) -> dict[str, Any] | None:
    """Read what has been measured, None when that is nothing; DeviceError when the file is damaged."""
    if not file.is_file():
        return None
    todo = "delete it to measure again"
    data = _read_json(file, todo)
    wanted = {
        "schema": int,
        "fingerprint": str,
        "runtime": str,
        "versions": dict,
        "machine": str,
        "hardware": dict,
        "results": list,
    }
    _check(data, wanted, file, todo)
    for entry in data["results"]:
        _check(entry, {"key": str, "name": str}, file, todo)
        if not isinstance(entry.get("failed"), str):
            _check(
                entry,
                {
                    "ratio": (int, float),
                    "engine_ms": (int, float),
                    "float_rounds_ms": list,
                    "slowdown": (int, float),
                    "ratio_interval": list,
                },
                file,
                todo,
            )
            if [type(end) for end in entry["ratio_interval"]] != [float, float]:
                raise DeviceError(
                    f"{file} is damaged (the interval of {entry['name']:.20} is no pair of numbers): {todo}"
                )
    return dict(data)


@contextmanager
def locked(directory: Path, announce: Callable[[str], None], while_waiting: Callable[[], None]) -> Iterator[None]:
    """Be the only one that measures in a directory; waits for another one, and calls `while_waiting` every second and
    at the end.

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
            while_waiting()  # what the other one did between the last look and its end
        yield


def _taken(stream: TextIO) -> bool:
    """Take the lock if nobody has it."""
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Deaths:
    """How often in a row the process has died over one engine, and whether by a crash, as a segmentation fault.

    What kills a process from outside, as the system does when memory runs out, is no crash.
    """

    times: int
    crashed: bool


@contextmanager
def watched(directory: Path, key: str, *, alone: bool = False) -> Iterator[Deaths]:
    """Remember in files what is being measured, and a crash over it; yields what is remembered of earlier attempts.

    `alone`: no other process watches this one, which does other work too, and somebody may end it at any time. Then a
    death counts where it was a crash, or where the system has ended a process since then because memory ran out, or
    does not tell.
    """
    started, crash = directory / STARTED_FILE, directory / CRASH_FILE
    earlier = _read_json(started, "delete it") if started.is_file() else {}
    earlier = earlier if isinstance(earlier, dict) and earlier.get("key") == key else {}
    times, before = _whole(earlier, "times"), _whole(earlier, "crash_bytes")
    written = crash.stat().st_size if times > 0 and crash.is_file() else 0
    killed = out_of_memory_kills()
    out_of_memory = killed is None or earlier.get("killed") is None or killed > _whole(earlier, "killed")
    if times > 0 and earlier.get("alone") is True and written <= before and not out_of_memory:
        times -= 1
    write_json(started, {"key": key, "times": times + 1, "alone": alone, "crash_bytes": written, "killed": killed})
    crashed = times > 0 and written > 0
    try:
        with crash.open("ab" if written else "wb") as stream:
            ours = not faulthandler.is_enabled()
            if ours:
                faulthandler.enable(stream, all_threads=False)
            try:
                yield Deaths(times, crashed)
            finally:
                if ours:
                    faulthandler.disable()
    finally:
        started.unlink(missing_ok=True)
        crash.unlink(missing_ok=True)


def out_of_memory_kills(statistics: Path = Path("/proc/vmstat")) -> int | None:
    """Return how many processes the system has ended since its start because memory ran out; None where it does not
    tell.
    """
    try:
        words = statistics.read_text(encoding="utf-8").split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return None


def _whole(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    return value if isinstance(value, int) else 0


def _read_json(file: Path, todo: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except RecursionError as error:
        raise DeviceError(f"{file} cannot be read (it is nested too deeply): {todo}") from error
    except (OSError, ValueError) as error:
        raise DeviceError(f"{file} cannot be read ({error}): {todo}") from error


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # no name that the system takes
        return False


def _check_all(data: Any, fields: Mapping[str, Any], file: Path) -> None:
    """Check the fields, and that there are no others."""
    _check(data, fields, file)
    unknown = [name for name in data if name not in fields]
    if unknown:
        raise DeviceError(f"{file} is damaged ({unknown[0]!r:.60} is no field): write the bundle again")


def _check(data: Any, fields: Mapping[str, Any], file: Path, todo: str = "write the bundle again") -> None:
    if not isinstance(data, dict):
        raise DeviceError(f"{file} is damaged ({data!r:.60} is no object): {todo}")
    if data.get("schema", SCHEMA) != SCHEMA:
        raise DeviceError(f"{file} has schema {data['schema']}, this program reads {SCHEMA}: {todo}")
    wrong = [
        name
        for name, kind in fields.items()
        if not isinstance(data.get(name), kind) or isinstance(data.get(name), bool)
    ]
    if wrong:
        raise DeviceError(f"{file} is damaged ({', '.join(wrong)} missing or of the wrong type): {todo}")
