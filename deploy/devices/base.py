"""What is measured on a device, and what every device can do."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.devices.messages import Result
from deploy.devices.products import ProductFile
from deploy.runner.protocol import Protocol

__all__ = ["Announce", "Candidate", "Device", "Experiment", "Result", "silent"]

Announce = Callable[[str], None]
"""Takes one line about the progress."""


def silent(_line: str) -> None:
    """Announce nothing."""


@dataclass(frozen=True)
class Candidate:
    """A lowered ONNX file and the runtime's settings for it; `name` is the hash of the file's content, 16 hexadecimal
    digits.
    """

    name: str
    model: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Candidates to be built and timed, each interleaved with the float engine.

    `runtime` is a name of `deploy.runner.bench.OPENERS`. `inputs` holds one batch of `batch` samples by the name of
    the model's input. `fingerprint` names what the engines were made of (model and data): results of another
    fingerprint are never taken for these. `label` is a line for people.
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


class Device(typing.Protocol):
    """A machine that engines are measured on."""

    def describe(self) -> str:
        """Name the machine: the same text as long as measurements may be compared. UserError when it cannot be
        reached.
        """

    def measure(self, experiment: Experiment, announce: Announce = silent) -> list[Result]:
        """Build and time the candidates; returns one result for each, in their order. What was measured before is not
        repeated.

        A result is of a candidate that was timed, or that the runtime there refused. Raises UserError when the device
        cannot be reached, lacks something, or failed for another reason than the candidate; the message says which.
        """

    def known(self, experiment: Experiment) -> list[Result]:
        """Return the results of the candidates that were measured before, in their order, without the others. Nothing
        is measured, and the device is not asked.
        """

    def fetch_engine(self, result: Result, directory: Path) -> ProductFile | None:
        """Put the plan that a result was measured with, and what belongs to it (`deploy.runner.product`), in the place
        of `directory`.

        Returns its description. Returns None, and leaves `directory` as it is, where neither the device nor this
        machine has that plan any more. UserError when the device cannot be reached, or sends something else.
        """

    def close(self) -> None:
        """Remove what measuring has left on the device."""
