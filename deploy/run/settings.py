"""What a search was asked to do."""

from __future__ import annotations

from dataclasses import replace

from calib.errors import UserError
from calib.files.storage import Record
from calib.formats.format import formats_from_text
from calib.observers import observer_from_name
from calib.rounding import rounding_from_name
from smpq.solve.search import Effort, effort_from_name
from smpq.value.value import VALUES

_MOST = {"samples": 10**9, "evaluations": 10**9, "batch": 2**20}
_LARGEST_SEED = 2**32 - 1


class Settings(Record, frozen=True):
    """What the search was asked to do. A run keeps its settings: other settings need another run.

    `formats` is a comma-separated list, '' for the target's own; `samples` calibration samples evaluate a policy;
    `effort` says how much the search may spend, and `evaluations`, where given, what of it scoring may; `stable` stops
    scoring once the decision for the budget no longer changes; `batch` is the batch size that latency is measured at.
    UserError names a value that cannot be used.
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
        for name, most in _MOST.items():
            number = getattr(self, name)
            if number is not None and not 1 <= number <= most:
                raise UserError(f"--{name} must be at least 1, and at most {most}, not {number}")
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise UserError(f"--seed must be 0 or more, and at most {_LARGEST_SEED}, not {self.seed}")
        if not 0 <= self.precision < 1:
            raise UserError(f"--precision is a fraction from 0 to below 1, not {self.precision}")

    @property
    def spending(self) -> Effort:
        """What the search may spend."""
        effort = effort_from_name(self.effort)
        return effort if self.evaluations is None else replace(effort, scoring=self.evaluations)
