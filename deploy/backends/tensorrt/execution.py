"""Run and time a plan, which takes a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from calib.errors import UserError
from deploy.backends.tensorrt.runtime import load
from deploy.runner.cuda import Cuda, open_cuda
from deploy.runner.errors import BuildError, DeviceError, MissingModule
from deploy.runner.trt import TrtEngine


def gpu_sm() -> str:
    """Return the compute capability of this machine's GPU, as in `sm86`; UserError with what is needed when there is
    none.
    """
    cuda = _opened()
    major, minor = cuda.compute_capability()
    cuda.close()
    return f"sm{major}{minor}"


def open_plan(plan: Path, runtime: str, inputs: Mapping[str, npt.NDArray[Any]]) -> TrtEngine:
    """Load a plan with one batch of inputs by name; the engine is run, timed and closed by its methods.

    Raises UserError when the plan or a GPU is missing, when the plan is for another GPU or version, or does not take
    the inputs.
    """
    if not plan.is_file():
        raise UserError(f"{plan} is missing: build it with smpq build")
    module, cuda = load(runtime), _opened()
    try:
        return TrtEngine(module, cuda, plan.read_bytes(), inputs)
    except BuildError as failed:
        cuda.close()
        raise UserError(f"{plan.name} does not run here ({failed.reason}): build it on this machine") from failed
    except DeviceError as error:
        cuda.close()
        raise UserError(f"{plan.name}: {error}") from error


class PlanRunner:
    """A plan that takes one batch after the other. It is loaded with the first, and anew for other shapes."""

    def __init__(self, plan: Path, runtime: str, input_names: Sequence[str]) -> None:
        """`input_names` in the order in which `run` is given the inputs."""
        self._open = partial(open_plan, plan, runtime)
        self._input_names = input_names
        self._engine: TrtEngine | None = None
        self._shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return all outputs, in the order of the model's; UserError as from `open_plan`."""
        feeds = dict(zip(self._input_names, inputs, strict=True))
        shapes = [array.shape for array in inputs]
        if self._engine is None or shapes != self._shapes:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self._engine, self._shapes = self._open(feeds), shapes
        else:
            try:
                self._engine.load(feeds)
            except DeviceError as error:
                raise UserError(str(error)) from error
        return list(self._engine.outputs().values())


def _opened() -> Cuda:
    try:
        return open_cuda()
    except MissingModule as error:
        raise UserError(f"{error}. Copy the run to a machine with a GPU and go on there") from error
