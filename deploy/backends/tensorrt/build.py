"""Build a plan from an ONNX file, with the code that also builds it on a device, and keep a record of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from calib.errors import UserError
from deploy.backends.base import BuildFailed
from deploy.backends.tensorrt.kernels import PlanKernel, kernels_from_log
from deploy.backends.tensorrt.runtime import load
from deploy.lowering.export import read_sizes
from deploy.lowering.onnx_files import load_model
from deploy.runner import errors as on_device
from deploy.runner.cuda import open_cuda
from deploy.runner.gpu import Gpu, gpu_of
from deploy.runner.plan_cache import BuiltPlan
from deploy.runner.trt import layers_of_plan
from deploy.runner.trt_build import TrtSettings, build
from deploy.runner.trt_log import Message
from deploy.runner.writing import write_bytes

_WEIGHTS_MEMORY = re.compile(r"Total Weights Memory: (\d+) bytes")


@dataclass(frozen=True)
class BuildRecord:
    """What a plan was built from, with what, and what came out.

    1. `compute_capability` is None when none was asked for: TensorRT builds for the GPU of the machine, TensorRT-RTX
       for all.
    2. `device` is the GPU that it was built on and its compute capability, None where there was none or Python could
       not reach it.
    3. `weights_memory_bytes` is the builder's own figure and the one to compare sizes by: the code of the kernels can
       be most of `plan_bytes` of a small network. It is None when the builder did not say.
    4. `kernels` come from the engine inspector where there is a GPU, else from the builder's log. They are empty when
       that held no list of kernels that could be read; a warning then says so.
    5. `timing_cache_sha256` is the hash of the timing cache after the build, None without one: TensorRT-RTX times no
       kernels.
    6. `from_cache`: the same had been built before, and `seconds` is what it took then.
    """

    runtime: str
    runtime_version: str
    compute_capability: str | None
    device: str | None
    flags: tuple[str, ...]
    seconds: float
    plan_bytes: int
    weights_memory_bytes: int | None
    onnx_sha256: str
    plan_sha256: str
    timing_cache_sha256: str | None
    from_cache: bool
    warnings: tuple[str, ...]
    kernels: tuple[PlanKernel, ...]


def build_plan(
    onnx: Path,
    plan: Path,
    runtime: str,
    compute_capability: str | None = None,
    *,
    batch_sizes: tuple[int, int, int] | None = None,
    cache: Path | None = None,
) -> BuildRecord | BuildFailed:
    """Build `onnx` into `plan` with `runtime`, one of `RUNTIMES`, and return the record of it.

    `compute_capability` (as in `sm86`) is for tensorrt-rtx, which needs no GPU to build. `batch_sizes` are the
    smallest, the usual and the largest batch, for inputs whose first dimension is free; what other axes may be stands
    in the file. `cache` is a directory that
    keeps plans and measured kernel times, so that nothing is built twice. A file that does not parse or build is a
    `BuildFailed`, and then `plan` is left as it was. Raises UserError when `onnx` is missing, the runtime is not
    installed or does not know the compute capability.
    """
    module = load(runtime)
    if not onnx.is_file():
        raise UserError(f"no such ONNX file: {onnx}")
    sm = compute_capability.lower() if compute_capability is not None else None
    gpu = _gpu()
    device = str(gpu) if gpu is not None else None
    try:
        settings = TrtSettings(runtime, batch_sizes, free_sizes(onnx), compute_capability=sm)
        built = build(module, onnx, settings, cache, gpu)
    except on_device.BuildError as failed:
        return BuildFailed(failed.reason, failed.log, failed.nodes)
    except on_device.DeviceError as error:
        raise UserError(str(error)) from error
    kernels, warnings = _kernels_and_warnings(module, built, device)
    write_bytes(plan, built.content)
    return BuildRecord(
        runtime=runtime,
        runtime_version=module.__version__,
        compute_capability=sm,
        device=device,
        flags=built.flags,
        seconds=built.seconds,
        plan_bytes=len(built.content),
        weights_memory_bytes=_weights_memory_bytes(built.messages),
        onnx_sha256=built.origin.onnx_sha256,
        plan_sha256=built.sha256,
        timing_cache_sha256=built.timing_cache_sha256,
        from_cache=built.from_cache,
        warnings=warnings,
        kernels=kernels,
    )


def free_sizes(onnx: Path) -> dict[str, list[list[int]]] | None:
    """Return the least, the usual and the most sizes of one sample of each input; None where no axis but the batch is
    free, and for a file that is no ONNX model, about which the builder complains.
    """
    try:
        return read_sizes(load_model(onnx)) or None
    except UserError:
        return None


def _gpu() -> Gpu | None:
    """Return the GPU of this machine, None where there is none: building needs none."""
    try:
        cuda = open_cuda()
    except on_device.MissingModule:
        return None
    try:
        return gpu_of(cuda)
    finally:
        cuda.close()


def _weights_memory_bytes(messages: Sequence[Message]) -> int | None:
    found = [match for message in messages if (match := _WEIGHTS_MEMORY.search(message.text))]
    return int(found[-1][1]) if found else None


def _kernels_and_warnings(
    module: ModuleType, built: BuiltPlan, device: str | None
) -> tuple[tuple[PlanKernel, ...], tuple[str, ...]]:
    warnings = [message.text.strip() for message in built.messages if message.severity == "WARNING"]
    kernels: tuple[PlanKernel, ...] = ()
    # The plan is good even where it cannot be described, as one for another GPU; only the check against the policy has
    # to do without.
    if device is not None:
        try:
            kernels = tuple(PlanKernel.from_json(layer) for layer in layers_of_plan(module, built.content))
        except (ValueError, on_device.BuildError) as error:
            warnings.append(str(error))
    if not kernels:
        try:
            kernels = kernels_from_log(message.text for message in built.messages)
        except ValueError as error:
            warnings.append(str(error))
    if not kernels:
        warnings.append(
            "neither inspector nor log holds a list of kernels: the plan cannot be checked against the policy"
        )
    return kernels, tuple(dict.fromkeys(warnings))
