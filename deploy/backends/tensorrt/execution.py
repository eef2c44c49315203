"""Run and time a plan, which takes a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from calib.errors import UserError


def measure(plan: Path, runtime: str) -> NoReturn:
    """Time a plan: not part of this version, so it raises UserError, which says what is needed."""
    raise UserError(_needs_gpu("measuring", plan, runtime))


def run(plan: Path, runtime: str) -> NoReturn:
    """Run a plan: not part of this version, so it raises UserError, which says what is needed."""
    raise UserError(_needs_gpu("running", plan, runtime))


def _needs_gpu(action: str, plan: Path, runtime: str) -> str:
    return (
        f"{action} {plan.name} needs an NVIDIA GPU with its driver, and this version only builds and checks plans: "
        f"copy the plan to the machine with the GPU and load it there with {runtime}"
    )
