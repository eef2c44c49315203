"""Build a plan from an ONNX file, with the code that also builds it on a device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import msgspec

from calib.errors import UserError
from deploy.backends.base import BuildFailed, Built
from deploy.backends.tensorrt.kernels import kernels_from_log
from deploy.backends.tensorrt.runtime import load
from deploy.devices.messages import Layer
from deploy.files.engine import BuiltRow
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


def build_plan(
    onnx: Path,
    plan: Path,
    runtime: str,
    compute_capability: str | None = None,
    *,
    batch_sizes: tuple[int, int, int] | None = None,
    cache: Path | None = None,
) -> Built | BuildFailed:
    """Build `onnx` into `plan` with `runtime`, one of `RUNTIMES`.

    `compute_capability` (as in `sm86`) is for tensorrt-rtx, which needs no GPU to build. `batch_sizes` are the
    smallest, the usual and the largest batch, for inputs whose first dimension is free; what other axes may be stands
    in the file. `cache` is a directory that keeps plans and measured kernel times, so that nothing is built twice.

    The layers come from the engine inspector where there is a GPU, else from the log of the builder. Where that held no
    list of kernels that could be read there are none, and a warning says so. Sizes are compared by the bytes of the
    weights: the code of the kernels can be most of the plan of a small network.

    A file that does not parse or build is a `BuildFailed`, and then `plan` is left as it was. Raises UserError when
    `onnx` is missing, the runtime is not installed or does not know the compute capability.
    """
    module = load(runtime)
    if not onnx.is_file():
        raise UserError(f"no such ONNX file: {onnx}")
    sm = compute_capability.lower() if compute_capability is not None else None
    gpu = _gpu()
    try:
        settings = TrtSettings(runtime, batch_sizes, free_sizes(onnx), compute_capability=sm)
        built = build(module, onnx, settings, cache, gpu)
    except on_device.BuildError as failed:
        return BuildFailed(failed.reason)
    except on_device.DeviceError as error:
        raise UserError(str(error)) from error
    layers, warnings = _layers_and_warnings(module, built, has_gpu=gpu is not None)
    write_bytes(plan, built.content)
    row = BuiltRow(
        sha256=built.sha256,
        size_bytes=len(built.content),
        build_seconds=built.seconds,
        versions={runtime: module.__version__},
        from_cache=built.from_cache,
        warnings=warnings,
    )
    return Built(row, layers, _weights_bytes(built.messages))


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


def _weights_bytes(messages: Sequence[Message]) -> int | None:
    found = [match for message in messages if (match := _WEIGHTS_MEMORY.search(message.text))]
    return int(found[-1][1]) if found else None


def _layers_and_warnings(
    module: ModuleType, built: BuiltPlan, *, has_gpu: bool
) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    warnings = [message.text.strip() for message in built.messages if message.severity == "WARNING"]
    layers: tuple[Layer, ...] = ()
    # The plan is good even where it cannot be described, as one for another GPU; only the check against the policy has
    # to do without.
    if has_gpu:
        try:
            layers = tuple(msgspec.convert(layer, Layer) for layer in layers_of_plan(module, built.content))
        except (ValueError, on_device.BuildError) as error:
            warnings.append(str(error))
    if not layers:
        try:
            layers = kernels_from_log(message.text for message in built.messages)
        except ValueError as error:
            warnings.append(str(error))
    if not layers:
        warnings.append(
            "neither inspector nor log holds a list of kernels: the plan cannot be checked against the policy"
        )
    return layers, tuple(dict.fromkeys(warnings))
