"""What is measured on a device, what comes back, and what every device can do."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from calib.errors import UserError
from deploy.on_device.protocol import Protocol

Announce = Callable[[str], None]
"""Takes one line about the progress."""


def silent(_line: str) -> None:
    """Announce nothing."""


@dataclass(frozen=True)
class Candidate:
    """A lowered ONNX file and the runtime's settings for it; `name` is the hash of the file's content, 16 hexadecimal digits."""

    name: str
    model: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Candidates to be built and timed, each interleaved with the float engine.

    `runtime` is "onnxruntime", "tensorrt" or "tensorrt-rtx". `inputs` holds one batch of `batch` samples by the name of the model's input.
    `fingerprint` names what the engines were made of (model and data): results of another fingerprint are never taken for these.
    `label` is a line for people.
    """

    runtime: str
    float_: Candidate
    candidates: tuple[Candidate, ...]
    inputs: Mapping[str, np.ndarray]
    batch: int
    protocol: Protocol
    seed: int
    fingerprint: str
    label: str = ""


@dataclass(frozen=True)
class Result:
    """One candidate on one device: timed against the float engine, or failed with its reason.

    Times are milliseconds of one call, intervals 95 %, `throughput` is samples in a second, `build_seconds` the time to make the engine.
    `p99_ms` is the 99th percentile of `p99_calls` single calls; without one `p99_note` says why. Of a failed candidate all figures are None, and `nodes` names the ONNX nodes that the runtime blames, if it says which. `key` is the hash of everything that the figures depend on, the device apart.
    """

    key: str
    name: str
    failed: str | None
    nodes: tuple[str, ...]
    batch: int
    clock: str | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    engine_ms: float | None
    float_ms: float | None
    p99_ms: float | None
    p99_calls: int | None
    p99_note: str | None
    throughput: float | None
    rounds_ms: tuple[float, ...]
    float_rounds_ms: tuple[float, ...]
    build_seconds: float | None
    layers: tuple[Mapping[str, Any], ...] | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Any) -> Result:
        """Read back `to_json`; UserError when a field is missing or is of another type."""
        try:
            values = {field.name: data[field.name] for field in fields(cls)}
        except (KeyError, TypeError) as error:
            raise UserError(f"damaged result of a measurement ({error!r}): measure again") from error
        for name, value in values.items():
            expected = _EXPECTED[name] if values["failed"] is None else (*_EXPECTED[name], type(None))
            if not isinstance(value, expected) or isinstance(value, bool):
                raise UserError(f"damaged result of a measurement ({name} is {value!r}): measure again")
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)


_NUMBER = (int, float)
_EXPECTED: dict[str, tuple[type, ...]] = {
    "key": (str,),
    "name": (str,),
    "failed": (str, type(None)),
    "nodes": (list,),
    "batch": (int,),
    "clock": (str,),
    "ratio": _NUMBER,
    "ratio_interval": (list,),
    "engine_ms": _NUMBER,
    "float_ms": _NUMBER,
    "p99_ms": (int, float, type(None)),
    "p99_calls": (int,),
    "p99_note": (str, type(None)),
    "throughput": _NUMBER,
    "rounds_ms": (list,),
    "float_rounds_ms": (list,),
    "build_seconds": _NUMBER,
    "layers": (list, type(None)),
}


class Device(typing.Protocol):
    """A machine that engines are measured on."""

    def describe(self) -> str:
        """Name the machine: the same text as long as measurements may be compared. UserError when it cannot be reached."""

    def measure(self, experiment: Experiment, announce: Announce = silent) -> list[Result]:
        """Build and time the candidates; returns one result for each, in their order. What was measured before is not repeated.

        Raises UserError when the device cannot be reached or lacks something, which the message names.
        """

    def close(self) -> None:
        """Remove what measuring has left on the device."""
