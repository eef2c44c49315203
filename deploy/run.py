"""A run: the directory that holds everything one search made, readable and editable between stages."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from calib.errors import UserError
from calib.formats import formats_from_text
from calib.observers import observer_from_name
from calib.rounding import rounding_from_name
from smpq.evaluate import VALUES

SCHEMA = 1
_PACKAGES = ("smpq", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "scipy", "numpy", "tensorrt-rtx", "tensorrt")


@dataclass(frozen=True)
class Settings:
    """What the search was asked to do. A run keeps its settings: other settings need another run.

    `formats` is a comma-separated list, '' for the target's own; `samples` calibration samples evaluate a policy; `evaluations` is
    the budget of the scoring; `batch` is the batch size that latency is measured at.
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
    evaluations: int = 600
    precision: float = 0.0
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
        for name in ("samples", "evaluations", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.precision < 1:
            raise UserError(f"--precision is a fraction from 0 to below 1, not {self.precision}")


class Run:
    """One run directory. Files are written under another name and renamed, so a kill never leaves half a file."""

    def __init__(self, path: Path) -> None:
        """Name a run; nothing is created yet."""
        self.path = path

    def create(self, settings: Settings) -> None:
        """Create the directory and keep the settings; UserError when the run exists with other settings."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give --out a directory")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {self.path}: {error.strerror}") from error
        if self.has("run.json"):
            ours, theirs = asdict(settings), asdict(self.settings())
            for name, value in theirs.items():
                if ours[name] != value:
                    raise UserError(
                        f"{self.path} holds a run with {name}={value!r}, now {ours[name]!r} is asked for: use another --out, or delete it"
                    )
        else:
            self.write_json("run.json", {"schema": SCHEMA, "settings": asdict(settings), "versions": versions()})

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

    def read_json(self, name: str, hint: str = "") -> Any:
        """Read a JSON file; UserError names the file and what makes it when it is missing or damaged."""
        path = self.file(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing{': ' + hint if hint else ''}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid JSON ({error}): correct it, or delete it to make it again") from error

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON file in one step."""
        write_text(self.file(name), json.dumps(record, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def versions() -> dict[str, str]:
    """Return the installed versions of what decides the result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
