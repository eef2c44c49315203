"""The GPU that engines are built for, as far as the builder's choice of kernels depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.runner.cuda import Cuda
from deploy.runner.state import power_mode


@dataclass(frozen=True)
class Gpu:
    """A GPU in one state: plans and kernel times of another one are not used again.

    1. `name` is the driver's, `sm` the compute capability as in "sm87".
    2. `sm_count` is the number of multiprocessors, None where CUDA was not asked. Some of Jetson's power modes turn a
       part of them off.
    3. `power_mode` is Jetson's, None on other machines.
    """

    name: str
    sm: str
    sm_count: int | None = None
    power_mode: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.sm}"


def gpu_of(cuda: Cuda) -> Gpu:
    """Describe the GPU behind an adapter, in the power mode that this machine is in."""
    major, minor = cuda.compute_capability()
    return Gpu(cuda.device_name(), f"sm{major}{minor}", cuda.sm_count, power_mode())
