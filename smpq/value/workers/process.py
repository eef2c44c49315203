"""What a worker does, wherever it runs: it keeps value functions and answers with values."""

from __future__ import annotations

import io
import os
import pickle
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calib.errors import UserError
from calib.heap import keep_freed_blocks
from calib.task import Task
from smpq.problem.policy import Policy
from smpq.value.value import PolicyValue, measure_of


@dataclass(frozen=True)
class Work:
    """Policies to evaluate with value function `game`, on all samples or on one `fold` of them; `payload` is the packed
    function for a worker that does not have it yet.
    """

    game: int
    policies: tuple[Policy, ...]
    payload: bytes | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Ready:
    """A worker has started."""

    pid: int


@dataclass(frozen=True)
class Died:
    """A worker is gone, with whatever it was working on."""

    reason: str


@dataclass(frozen=True)
class Answer:
    """(index, value) of every policy; or what the user has to change; or the traceback of a bug."""

    values: tuple[tuple[int, float], ...] = ()
    wrong: str | None = None
    failure: str | None = None


class WorkerProcess:
    """The worker's side: one thread, and one copy of every value function it was sent."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        keep_freed_blocks()
        self._values: dict[int, PolicyValue] = {}

    def ready(self) -> Ready:
        """Tell that it works."""
        return Ready(os.getpid())

    def answer(self, work: Work) -> Answer:
        """Evaluate; never raises."""
        try:
            if work.payload is not None:
                self._values[work.game] = unpack(work.payload)
            value = self._values[work.game]
            return Answer(tuple((value if work.fold is None else value.fold(work.fold))(work.policies)))
        except UserError as error:
            return Answer(wrong=str(error))
        except Exception:  # noqa: BLE001 - it is raised again where the run is
            return Answer(failure=traceback.format_exc())


def check_portable(task: Task, value: str) -> None:
    """Raise UserError when the part of a task that workers need cannot be sent to them."""
    _dumped(measure_of(task, value))


def pack(value: PolicyValue) -> bytes:
    """Return a value function as bytes, with the places that its modules are imported from."""
    # the current directory is importable while a task is loaded (calib.tasks)
    return _dumped(([str(Path.cwd()), *sys.path], value.device, _dumped(value)))


def unpack(payload: bytes) -> PolicyValue:
    """Return the value function of `pack`, on its device; UserError when its task cannot be imported or the device is
    not here.
    """
    places, device, written = _loaded(payload)
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"there is no CUDA device where {device} is asked for: use --torch-device cpu")
    sys.path += [place for place in places if place not in sys.path]
    try:
        value: PolicyValue = _loaded(written, device)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"a worker cannot import what the task is made of ({error}): install it where the workers run, or use "
            "--workers 1"
        ) from error
    return value


def placed(value: PolicyValue) -> PolicyValue:
    """Return the value function on its device: itself on the CPU, else a copy whose tensors are there."""
    return value if value.device == "cpu" else unpack(pack(value))


def _dumped(content: object) -> bytes:
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch about its own pytree classes, see pyproject.toml
            torch.save(content, buffer)  # unlike pickle it writes memory that several tensors share once
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the task cannot be sent to other processes ({error}): define its class and functions at the top level of "
            "a module, "
            "judge with --value kl and no divergence of the task's own, or use --workers 1"
        ) from error
    return buffer.getvalue()


def _loaded(content: bytes, device: str = "cpu") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        # written by `_dumped` in the process that started this one
        return torch.load(io.BytesIO(content), map_location=device, weights_only=False)  # noqa: TID251
