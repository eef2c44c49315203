"""Commands to type next, complete with the run's directory and options."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.files.report import LimitRow, ReportFile
from smpq.problem.budget import Limit

_TIMING = frozenset({"measure", "profile", "curve"})
"""Commands about a run that time engines, on the device that the run was given."""


@dataclass(frozen=True)
class CommandLines:
    """Writes commands about a run, which is at `run` as a person typed it.

    A command that needs the task is None where the task is an object of a Python program.
    """

    report: ReportFile
    run: Path

    def about_run(self, name: str) -> str | None:
        """Return a command that reads the run and its task."""
        device = self._device() if name in _TIMING else []
        return shlex.join(["smpq", name, str(self.run), *device]) if self.report.options else None

    def about_target(self) -> str:
        """Return the command that shows which formats are real on the target."""
        return shlex.join(["smpq", "targets", self.report.target])

    def about_device(self) -> str:
        """Return the command that says what the machine that times engines lacks for the target."""
        return shlex.join(["smpq", "doctor", *self._device(), "--target", self.report.target])

    def _device(self) -> list[str]:
        return [word for address in self.report.options.get("--device", ()) for word in ("--device", address)]

    def again(
        self, budget: str = "", changed: Mapping[str, Sequence[str] | None] | None = None, new: str = ""
    ) -> str | None:
        """Return `smpq run` with the options of the run, other than `changed`, where None leaves an option out. Other
        settings need another directory: `new` is what its name ends with.
        """
        if not self.report.options:
            return None
        words = ["smpq", "run"]
        for option, values in {**self.report.options, **(changed or {})}.items():
            if values is not None:
                words += [word for value in values for word in (option, value)] or [option]
        asked = budget or self.report.budget
        return shlex.join([*words, *(["--budget", asked] if asked else []), "--out", f"{self.run}{new}"])

    def loosened(self, chosen: LimitRow, reached: float) -> str:
        """Return the budget with one of its limits at what was reached, rounded up to two digits."""
        limits = self.report.limits
        values = [_rounded_up(reached) if row is chosen else row.limit for row in limits]
        return ",".join(str(Limit(row.cost, value, row.unit == "x")) for row, value in zip(limits, values, strict=True))


def _rounded_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step * (1 - 1e-9)) * step:.6g}")
