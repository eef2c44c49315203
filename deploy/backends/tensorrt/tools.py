"""NVIDIA's own programs that build and time a file: `trtexec`, and `tensorrt_rtx` of TensorRT-RTX."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from deploy.runner.trt_build import AVERAGED_TIMINGS

_DETAILED = "--profilingVerbosity=detailed"


class Trtexec:
    """TensorRT's program, on the machine that has the GPU.

    TensorRT 10 would choose types of its own without `--stronglyTyped`, TensorRT 11 accepts and ignores it. Each kernel
    is timed as often as here. The kernels can still be others, since the fastest is chosen by the clock.
    """

    def build(
        self, model: Path, shapes: Sequence[str], compute_capabilities: Sequence[str], times: Path | None
    ) -> tuple[str, ...]:
        """Return one command; it builds for the GPU of its machine."""
        del compute_capabilities
        options = ["--stronglyTyped", f"--avgTiming={AVERAGED_TIMINGS}", _DETAILED, *shapes]
        options += [f"--timingCacheFile={times}"] if times is not None else []
        return (shlex.join(["trtexec", f"--onnx={model}", f"--saveEngine={model.with_suffix('.engine')}", *options]),)

    def load(self, plan: Path) -> str:
        """Return the command that times a plan."""
        return shlex.join(["trtexec", f"--loadEngine={plan}"])


class RtxTool:
    """The program of TensorRT-RTX. It builds without timing, and knows no other networks than strongly typed ones."""

    def build(
        self, model: Path, shapes: Sequence[str], compute_capabilities: Sequence[str], times: Path | None
    ) -> tuple[str, ...]:
        """Return a command for each compute capability."""
        del times
        return tuple(self._build(model, sm, shapes) for sm in compute_capabilities)

    def _build(self, model: Path, sm: str, shapes: Sequence[str]) -> str:
        engine, number = model.with_suffix(f".{sm}.engine"), sm.removeprefix("sm")
        options = [f"--saveEngine={engine}", f"--computeCapabilities={number}", _DETAILED, *shapes]
        return shlex.join(["tensorrt_rtx", f"--onnx={model}", *options])

    def load(self, plan: Path) -> str:
        """Return the command that times a plan."""
        return shlex.join(["tensorrt_rtx", f"--loadEngine={plan}"])
