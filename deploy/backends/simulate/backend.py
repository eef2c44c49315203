"""Engines that compute what the fake-quantised model does, for research."""

from __future__ import annotations

from pathlib import Path

from calib.errors import UserError
from deploy.backends.base import BuildFailed, Built, backend
from deploy.backends.onnxruntime.backend import OnnxRuntime
from deploy.backends.onnxruntime.build import build_engine
from deploy.lowering.lower import Lowering


@backend("simulate")
class Simulate(OnnxRuntime):
    """The file is computed as it is written: no integer kernels, float biases."""

    names_layers = False

    @property
    def lowering(self) -> Lowering:
        """What the fake-quantised model computes, in the fewest nodes."""
        return Lowering(half=False, newest_opset=self.target.newest_opset)

    def build(self, model: Path, engine: Path, sm: str = "", cache: Path | None = None) -> Built | BuildFailed:
        """Keep the file, to be computed exactly."""
        return self.kept(build_engine(model, engine, exact=True))

    def check_profiled(self) -> None:
        """UserError: there is no engine."""
        raise UserError(f"{self.target.name} has no engine to profile: take a target with an engine (smpq targets)")
