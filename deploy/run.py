"""A run: the directory that holds everything one search made, readable and editable between stages."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from calib.errors import UserError
from calib.fingerprint import Fingerprint
from calib.formats import formats_from_text
from calib.observers import observer_from_name
from calib.rounding import rounding_from_name
from smpq.search import Effort, effort_from_name
from smpq.value import VALUES
from smpq.workers.resources import Resources

SCHEMA = 1
_PACKAGES = ("smpq", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "scipy", "numpy", "tensorrt-rtx", "tensorrt")
DECISIVE = ("smpq", "torch", "onnx", "onnx-ir", "onnxscript")
"""Packages whose version decides what is computed and exported: a run goes on with the ones that it began with."""


@dataclass(frozen=True)
class Settings:
    """What the search was asked to do. A run keeps its settings: other settings need another run.

    `formats` is a comma-separated list, '' for the target's own; `samples` calibration samples evaluate a policy; `effort` says
    how much the search may spend, and `evaluations`, where given, what of it scoring may; `stable` stops scoring once the decision for the
    budget no longer changes; `batch` is the batch size that latency is measured at.
    """

    task: str
    target: str = "ort-cpu"
    data: str | None = None
    weights: str | None = None
    formats: str = ""
    compute_capabilities: tuple[str, ...] = ()
    observer: str = "mse"
    rounding: str = "gptq"
    value: str = "kl"
    samples: int = 512
    effort: str = "normal"
    evaluations: int | None = None
    precision: float = 0.0
    stable: bool = False
    seed: int = 0
    batch: int = 1
    size_only: bool = False

    def __post_init__(self) -> None:
        observer_from_name(self.observer)
        rounding_from_name(self.rounding)
        if self.formats:
            formats_from_text(self.formats)
        if self.value not in VALUES:
            raise UserError(f"unknown value {self.value!r}: choose one of {', '.join(VALUES)}")
        effort_from_name(self.effort)
        for name in ("samples", "evaluations", "batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, not {self.seed}")
        if not 0 <= self.precision < 1:
            raise UserError(f"--precision is a fraction from 0 to below 1, not {self.precision}")

    @property
    def spending(self) -> Effort:
        """What the search may spend."""
        effort = effort_from_name(self.effort)
        return effort if self.evaluations is None else replace(effort, scoring=self.evaluations)


class Run:
    """One run directory. Files are written under another name and renamed, so a kill never leaves half a file."""

    def __init__(self, path: Path) -> None:
        """Name a run; nothing is created yet."""
        self.path = path

    def check(self, settings: Settings) -> None:
        """Raise UserError when a run with these settings cannot be here: a file is, or a run with other settings."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give --out a directory")
        if not self.has("run.json"):
            return
        ours = asdict(settings)
        for name, value in asdict(self.settings()).items():
            if ours[name] != value:
                raise UserError(
                    f"{self.path} holds a run with {name}={value!r}, now {ours[name]!r} is asked for: use another --out, or delete it"
                )

    def lock(self) -> None:
        """Keep other processes from working on this run as long as this object lives; UserError when one does already."""
        if sys.platform == "win32":  # it has no locks that end with their process
            return
        import fcntl

        try:
            handle = self.file("run.lock").open("a")
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror}") from error
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            raise UserError(
                f"another process works on {self.path}: wait until it is done, stop it, or use another --out"
            ) from error
        weakref.finalize(self, handle.close)

    def keep(self, settings: Settings, fingerprint: Fingerprint, resources: Resources | None = None) -> None:
        """Create the run unless it is there; UserError, which names what changed, when it was made of something else.

        `resources`, which may change from command to command, are written down as information.
        """
        if self.has("run.json"):
            record = self.read_json("run.json")
            self._check_same(record, fingerprint)
            if resources is not None and record.get("resources") != resources.to_json():
                self.write_json("run.json", {**record, "resources": resources.to_json()})
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {self.path}: {error.strerror}") from error
        self.lock()
        record = {"schema": SCHEMA, "settings": asdict(settings), "fingerprint": fingerprint.to_json(), "versions": versions()}
        self.write_json("run.json", record if resources is None else {**record, "resources": resources.to_json()})

    def _check_same(self, record: Mapping[str, Any], fingerprint: Fingerprint) -> None:
        try:
            changed = Fingerprint.from_json(record["fingerprint"]).differences(fingerprint)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.file('run.json')} does not say what the run was made of (an older smpq?): use another --out, or delete it"
            ) from error
        if changed:
            raise UserError(
                f"{', '.join(changed)} changed since {self.path} was made, and what it holds is about the old state: use another --out, "
                "or delete it"
            )

    def settings(self) -> Settings:
        """Read the settings; UserError when this is not a run or the file is damaged."""
        if not self.has("run.json"):
            raise UserError(f"{self.path} is not a run (it has no run.json): make one with smpq run or smpq score")
        record = self.read_json("run.json")
        try:
            if record["schema"] != SCHEMA:
                raise UserError(f"{self.path} has schema {record['schema']!r}; this version reads schema {SCHEMA}")
            known = {field.name for field in fields(Settings)}
            values = {name: value for name, value in record["settings"].items() if name in known}
            return Settings(**{**values, "compute_capabilities": tuple(values.get("compute_capabilities", ()))})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path / 'run.json'} is damaged ({error!r}): delete it and run again") from error

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    def file(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.path / name

    def read_json(self, name: str, hint: str = "", keys: Sequence[str] = ()) -> dict[str, Any]:
        """Read a JSON object; UserError names the file and what makes it when it is missing, damaged, or lacks one of `keys`."""
        path = self.file(name)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing{': ' + hint if hint else ''}") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}): correct it, or delete it to make it again") from error
        missing = [key for key in keys if not isinstance(record, dict) or key not in record]
        if missing or not isinstance(record, dict):
            what = f"lacks {', '.join(missing)}" if missing else "does not hold a JSON object"
            raise UserError(f"{path} {what}: correct it, or delete it to make it again")
        return record

    def made_for(self, name: str, policy_key: str) -> bool:
        """Whether a stage's file is there and was made for this policy, not for one that policy.json held before."""
        return self.has(name) and self.read_json(name, keys=["policy"])["policy"] == policy_key

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON file in one step."""
        write_text(self.file(name), json.dumps(record, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it; UserError when the system does not let it."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def versions() -> dict[str, str]:
    """Return the installed versions of what decides the result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
