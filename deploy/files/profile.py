"""`profile.json`: where the time of an engine on an NVIDIA GPU goes."""

from __future__ import annotations

from typing import Literal

from calib.files.storage import AboveZero, Amount, Record
from smpq.files import FormatText, OfPolicy

Role = Literal["layer", "quantize", "reformat", "copy", "other"]
_ROUNDING = 1e-6


class ProfiledUnit(Record, frozen=True, kw_only=True):
    """A layer of the model: its planned format, and what its kernel computes in, as in
    `deploy.backends.tensorrt.check.UnitCheck`.
    """

    planned: FormatText
    found: str
    agrees: bool


class ProfiledKernel(Record, frozen=True, kw_only=True):
    """A kernel, in the runtime's words, and its time in a profiled run; None where the profiler did not name it.

    1. `role`: `layer` computes the layers in `units`; `quantize` turns floats into integers, or integers into floats;
       `reformat` changes type, order or shape of a tensor; `copy` moves one; `other` is the rest, as pooling and sums.
    2. Of another role than `layer`, `units` are the layers that the kernel came from as well.
    """

    role: Role
    kind: str
    name: str
    units: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ms: Amount | None


class ProfileFile(OfPolicy, frozen=True, kw_only=True):
    """`profile.json`: the kernels of the engine in the order in which they run, and the layers of the model.

    1. `profiled_ms` is the sum of the kernels' times. The profiler slows the engine down, so that these are shares, and
       `engine_ms`, measured without it, is what a call takes.
    2. `enqueue_ms` is what the host takes to put a call on the GPU's stream; None where that was not measured.
    """

    NAME = "profile.json"
    MADE_BY = "smpq profile"

    target: str
    machine: str
    clock: str
    engine_ms: AboveZero
    float_ms: AboveZero
    enqueue_ms: AboveZero | None
    profiled_ms: AboveZero
    kernels: tuple[ProfiledKernel, ...]
    units: dict[str, ProfiledUnit]

    def __post_init__(self) -> None:
        super().__post_init__()
        total = sum(kernel.ms for kernel in self.kernels if kernel.ms is not None)
        if abs(total - self.profiled_ms) > _ROUNDING * total:
            raise ValueError(f"profiled_ms is {self.profiled_ms:.6g}, and the times of the kernels come to {total:.6g}")
        unknown = {unit for kernel in self.kernels for unit in kernel.units} - set(self.units)
        if unknown:
            raise ValueError(f"a kernel is of the layer {min(unknown)}, which is not in units")

    @property
    def launch_share(self) -> float | None:
        """The time to enqueue a call as a share of the time that the GPU takes for it; above 1 the GPU waits for the
        host.
        """
        return self.enqueue_ms / self.engine_ms if self.enqueue_ms is not None else None
