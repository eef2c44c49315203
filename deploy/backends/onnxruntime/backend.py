"""ONNX Runtime as a back end: its CPU and CUDA providers, and its TensorRT provider."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from calib.errors import UserError
from calib.formats.format import FP16, Format
from calib.network.units import Unit
from deploy.backends.base import Backend, BuildFailed, BuildTool, Built, OpenEngine, UnitKernel, backend
from deploy.backends.onnxruntime.build import build_engine, check_providers, has_providers, session_settings
from deploy.backends.onnxruntime.engine import load_engine, open_lowered
from deploy.backends.onnxruntime.kernels import check_units, unit_kernels
from deploy.backends.onnxruntime.record import OrtEngineRecord
from deploy.backends.onnxruntime.static import plain_settings, quantize_plainly
from deploy.backends.tensorrt.lowering import for_tensorrt
from deploy.backends.tensorrt.tools import Trtexec
from deploy.devices.messages import Layer
from deploy.files.engine import BuiltRow
from deploy.lowering.lower import Lowering

_COPIED_FROM_BITS = 8
"""ONNX Runtime rewrites weights beyond 7 bits where the CPU would overflow, and fails when it meets the same one a
second time.
"""


@backend("onnxruntime")
class OnnxRuntime(Backend):
    """An engine is an ONNX file and its entry in `engine.json`, in a session with the target's providers."""

    in_onnxruntime = True
    names_layers: ClassVar[bool] = True
    """Whether the graph that runs has a node for each layer."""
    computed_in: ClassVar[str] = "in ONNX Runtime"
    times_instead: ClassVar[str] = (
        "smpq build names the kernel of each layer; for times set enable_profiling in onnxruntime.SessionOptions when "
        "you load the engine"
    )

    @property
    def lowering(self) -> Lowering:
        """Integer biases; no clips, and no floats around a Pad, between integer layers. MatMul and Add for linear
        layers without an integer bias. The batch stays dynamic.
        """
        return Lowering(
            half=self.target.reference == FP16,
            newest_opset=self.target.newest_opset,
            integer_matmul=True,
            copied_from_bits=_COPIED_FROM_BITS,
            integer_biases=True,
            packed_rows=True,
            integers_between=self.target.quantize_outputs,
        )

    def build(self, model: Path, engine: Path, sm: str = "", cache: Path | None = None) -> Built | BuildFailed:
        """Copy the file, and choose how it is to be loaded."""
        return self.kept(build_engine(model, engine, providers=self.target.providers))

    def kept(self, result: OrtEngineRecord | BuildFailed) -> Built | BuildFailed:
        """Return a build as the run keeps it."""
        if isinstance(result, BuildFailed):
            return result
        row = BuiltRow(
            sha256=result.sha256,
            size_bytes=result.size_bytes,
            build_seconds=result.build_seconds,
            versions=dict(result.versions),
        )
        return Built(row)

    def open(self, engines: Mapping[str, Path], inputs: Sequence[str], batch: int, threads: int) -> OpenEngine | str:
        """Open a session."""
        (path,) = engines.values()
        if not path.is_file():
            raise UserError(f"{path} is missing: build it with smpq build")
        return load_engine(path, threads=threads).opened()

    def open_lowered(
        self, model: Path, settings: Mapping[str, Any], inputs: Sequence[str], batch: int, threads: int, cache: Path
    ) -> OpenEngine | str:
        """Open a session with the settings."""
        return open_lowered(model, settings, threads).opened()

    def quantize_itself(
        self, float_model: Path, out: Path, feeds: Iterable[dict[str, npt.NDArray[Any]]]
    ) -> dict[str, Any] | BuildFailed | None:
        """Use `quantize_static`."""
        refused = quantize_plainly(float_model, out, feeds)
        return refused if refused is not None else plain_settings(self.settings(out))

    def unit_kernels(
        self, engine: Path, layers: Sequence[Layer], units: Sequence[Unit], formats: Mapping[str, Format]
    ) -> list[UnitKernel]:
        """Read the graph that ONNX Runtime really runs."""
        if not self.names_layers:
            return []
        return check_units(unit_kernels(engine, units), formats)

    def settings(self, model: Path) -> dict[str, Any]:
        """Return how a session is to be made."""
        return session_settings(model, self.target.providers)

    @property
    def builds_for_devices(self) -> bool:
        """Whether this onnxruntime has the providers."""
        return has_providers(self.target.providers)

    def check_timed_here(self) -> None:
        """UserError when this onnxruntime lacks a provider."""
        check_providers(self.target.providers)

    def check_profiled(self) -> None:
        """UserError: ONNX Runtime's own profiler is for its user."""
        raise UserError(
            f"smpq profile reads the profiler of TensorRT and TensorRT-RTX, and an engine of {self.target.name} runs "
            f"{self.computed_in}: {self.times_instead}"
        )


@backend("onnxruntime-tensorrt")
class OnnxRuntimeTensorRt(OnnxRuntime):
    """The TensorRT provider: the file of TensorRT in one node of a session."""

    names_layers = False
    computed_in = "in one node that ONNX Runtime hands to TensorRT"
    times_instead = "use --target tensorrt for the same kernels with their times"
    tool: ClassVar[BuildTool | None] = Trtexec()

    @property
    def lowering(self) -> Lowering:
        """The same as TensorRT itself."""
        return for_tensorrt(self.target)
