"""Build a TensorRT engine for the GPU of this machine, and load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from deploy.runner.cuda import Cuda, open_cuda
from deploy.runner.errors import BuildError, MissingModule
from deploy.runner.gpu import gpu_of
from deploy.runner.trt import TrtEngine
from deploy.runner.trt_build import TrtSettings, build, for_gpu
from deploy.runner.trt_log import load_module

_OLD_DRIVER = re.compile(r"CUDA driver version is insufficient|cudaErrorInsufficientDriver|\b(?:failure|error): 35\b")


def open_trt_engine(
    runtime: str, model: Path, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray], cache: Path
) -> TrtEngine:
    """Build an ONNX file for this GPU, or take its plan from the directory `cache`, and load it with one batch of
    inputs by name.

    `settings` are those of `TrtSettings` without the runtime. Raises BuildError when the runtime makes no engine of
    the file, DeviceError when a module or the GPU is missing, the driver is too old for the runtime, a setting is
    unknown, or the inputs do not fit.
    """
    module = load_module(runtime)
    cuda = open_cuda()
    try:
        gpu = gpu_of(cuda)
        built = build(module, model, for_gpu(module, TrtSettings.from_json(runtime, settings), gpu), cache, gpu)
        engine = TrtEngine(module, cuda, built.content, inputs)
    except BuildError as failed:
        cuda.close()
        if _OLD_DRIVER.search(failed.reason):
            raise _driver_too_old(module, runtime, cuda) from failed
        raise
    except BaseException:
        cuda.close()
        raise
    engine.plan_sha256 = built.sha256
    return engine


def _driver_too_old(module: ModuleType, runtime: str, cuda: Cuda) -> MissingModule:
    """Return the error for the CUDA runtime's error 35. Without a GPU TensorRT prints it beside other errors; here
    there is one.
    """
    version = ".".join(map(str, cuda.driver_version))
    return MissingModule(
        f"{runtime} {module.__version__} needs a newer driver than the one here, which is for CUDA {version}: update "
        "the driver, or "
        f"install a {runtime} that was built for CUDA {cuda.driver_version[0]}"
    )
