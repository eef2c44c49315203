"""`engine.json`: how each ONNX Runtime engine of a directory was built and has to be loaded."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from calib.errors import UserError

SCHEMA = 1
ENGINE_FILE = "engine.json"


@dataclass(frozen=True)
class OrtEngineRecord:
    """One engine: session settings, what it was built from and with, inputs and outputs.

    `providers` are names of execution providers, or pairs of a name and its options. `inputs` and `outputs` are mappings of name, shape
    (numbers, or names of free dimensions) and dtype (ONNX Runtime's text, as in `tensor(float)`). `build_seconds` is the time to optimise the graph and to create the session, which every load takes again.
    """

    sha256: str
    size_bytes: int
    providers: tuple[Any, ...]
    graph_optimization_level: str
    disabled_optimizers: tuple[str, ...]
    session_config: Mapping[str, str]
    intra_op_num_threads: int
    inter_op_num_threads: int
    versions: Mapping[str, str]
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]
    build_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, data: Any) -> OrtEngineRecord:
        """Read back `to_json`; UserError when a field is missing or is of another type."""
        try:
            values = {field.name: data[field.name] for field in fields(cls)}
        except (KeyError, TypeError) as error:
            raise UserError(f"damaged entry in {ENGINE_FILE} ({error!r}): build the engine again") from error
        for name, value in values.items():
            if not isinstance(value, _EXPECTED[name]):
                raise UserError(f"damaged entry in {ENGINE_FILE} ({name} is {value!r}): build the engine again")
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)


_EXPECTED: dict[str, type | tuple[type, ...]] = {
    "sha256": str,
    "size_bytes": int,
    "providers": list,
    "graph_optimization_level": str,
    "disabled_optimizers": list,
    "session_config": dict,
    "intra_op_num_threads": int,
    "inter_op_num_threads": int,
    "versions": dict,
    "inputs": list,
    "outputs": list,
    "build_seconds": (int, float),
}


def read_record(engine: Path) -> OrtEngineRecord:
    """Return the entry of `engine` in the `engine.json` beside it; UserError when either is missing or damaged."""
    if not engine.is_file():
        raise UserError(f"there is no engine {engine}: build it first")
    file = engine.with_name(ENGINE_FILE)
    if not file.is_file():
        raise UserError(f"{file} is missing: without it nobody knows how {engine.name} has to be loaded; build the engine again")
    entries = _read(file)
    if engine.name not in entries:
        raise UserError(f"{file} has no entry for {engine.name}: build the engine again")
    return OrtEngineRecord.from_json(entries[engine.name])


def write_record(engine: Path, record: OrtEngineRecord) -> None:
    """Add or replace the entry of `engine`; the other engines of the directory keep theirs."""
    file = engine.with_name(ENGINE_FILE)
    entries = _read(file) if file.is_file() else {}
    entries[engine.name] = record.to_json()
    text = json.dumps({"schema": SCHEMA, "engines": dict(sorted(entries.items()))}, indent=2) + "\n"
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): delete it and build the engines again") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("engines"), dict):
        raise UserError(f"{file} is not an engine list of schema {SCHEMA}: delete it and build the engines again")
    return dict(data["engines"])
