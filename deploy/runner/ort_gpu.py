"""ONNX Runtime's providers for NVIDIA GPUs: their libraries, options that depend on the machine, and what to do when
one is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from deploy.runner.errors import DeviceError
from deploy.runner.state import machine

ORT_CPU, ORT_CUDA, ORT_TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDER_FILES = {ORT_CUDA: "libonnxruntime_providers_cuda.so", ORT_TENSORRT: "libonnxruntime_providers_tensorrt.so"}
_TENSORRT_LIBRARY = re.compile(r"lib(?:nvinfer|nvonnxparser)\w*\.so\.(\d+)")
_NO_DRIVER = re.compile(r"libcuda\.so[\d.]*: cannot open shared object")
# 35 and 804: the driver is too old, 100: no GPU, 3: CUDA does not start, 803: driver and library differ.
_GPU_FAILS = re.compile(
    r"CUDA failure (?:3|35|100|803|804)\b|no CUDA-capable device|driver version is insufficient", re.IGNORECASE
)
_NO_CUDNN = re.compile(r"cuDNN is unavailable|libcudnn[\w.]*: cannot open")
_OPTION_REFUSED = re.compile(r"should be 'True' or 'False'|EP option|provider option", re.IGNORECASE)
_GRAPH_OPTIONS = {ORT_CUDA: {"enable_cuda_graph": "1"}, ORT_TENSORRT: {"trt_cuda_graph_enable": "True"}}
_COMPLETE = "complete"
_Opened = TypeVar("_Opened")


@cache
def load_gpu_libraries(*, tensorrt: bool) -> None:
    """Load the libraries of CUDA, cuDNN and TensorRT that pip installed, once.

    The providers link them by name, and pip's folders are on no search path; what a process has loaded is found all the
    same. Libraries that are nowhere are no error here: `why_missing` names them when a session turns out to lack its
    provider.
    """
    import onnxruntime as ort

    if tensorrt:
        _tensorrt_module()
    preload = getattr(ort, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, perhaps for another provider
            preload()


def provider_options(
    providers: Sequence[Any], cached: Path | None = None, timing: Path | None = None, *, graph: bool = False
) -> list[str | tuple[str, dict[str, str]]]:
    """Return providers with the options that hold for this machine alone, and are therefore in no file.

    `cached` is where the TensorRT provider keeps the engine of this model, `timing` the times of its kernels. `graph`:
    the first provider launches its work as one CUDA graph, for which all work has to be its own, and the addresses of
    inputs and outputs fixed.
    """
    found: list[str | tuple[str, dict[str, str]]] = []
    for index, provider in enumerate(providers):
        name, options = (provider, {}) if isinstance(provider, str) else provider
        more = dict(_GRAPH_OPTIONS.get(name, {})) if graph and index == 0 else {}
        if name == ORT_TENSORRT and cached is not None:
            more |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cached)}
        if name == ORT_TENSORRT and timing is not None:
            more |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(timing)}
        found.append((name, {**options, **more}) if options or more else name)
    return found


def cache_places(model: Path, settings: Mapping[str, Any], cache_directory: Path) -> tuple[Path, Path]:
    """Return the directories for the TensorRT provider's engine of a model, and for the times of kernels.

    ONNX Runtime names an engine by the graph's names, not by its weights, and by no version of TensorRT. So each has
    its own directory, by content, settings, versions and machine, to which Jetson's power mode belongs.
    """
    import onnxruntime as ort

    module = _tensorrt_module()
    there = [machine(), ort.__version__, str(getattr(module, "__version__", ""))]
    digest = hashlib.sha256(json.dumps([there, dict(settings)], sort_keys=True, default=list).encode())
    for file in (model, model.with_name(f"{model.name}.data")):  # the second holds the weights of a large model
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    timing = hashlib.sha256(json.dumps(there).encode()).hexdigest()[:16]
    return cache_directory / f"ort-{digest.hexdigest()[:32]}", cache_directory / f"ort-timing-{timing}"


def with_kept_engine(place: Path, open_engine: Callable[[], _Opened]) -> _Opened:
    """Open an engine that is kept in `place`. One that was not written to its end, or does not load any more, is made
    again.
    """
    if not (place / _COMPLETE).is_file():
        shutil.rmtree(place, ignore_errors=True)
    kept = place.is_dir()
    place.mkdir(parents=True, exist_ok=True)
    try:
        opened = open_engine()
    except DeviceError:
        raise
    except Exception:
        shutil.rmtree(place, ignore_errors=True)
        if not kept:
            raise
        place.mkdir(parents=True)
        opened = open_engine()
    (place / _COMPLETE).touch()
    return opened


def about_the_machine(error: Exception, providers: Sequence[str]) -> str | None:
    """Return what has to be changed on this machine when that is why ONNX Runtime failed; None when it is about the
    model.
    """
    unloadable = [name for name in providers if loader_error(name) is not None]
    if unloadable:
        return why_missing(unloadable)
    text = " ".join(str(error).split())
    if _GPU_FAILS.search(text):
        return (
            f"ONNX Runtime cannot use the GPU ({text[:300]}): nvidia-smi has to show it; "
            "update its driver if CUDA finds it too old"
        )
    cudnn = _NO_CUDNN.search(text)
    if cudnn:  # looked for when the first operator needs it, long after the session is made
        return f"ONNX Runtime does not find cuDNN ({text[cudnn.start() :][:200]}): {_mend(text[cudnn.start() :])}"
    if _OPTION_REFUSED.search(text):
        return (
            f"this version of ONNX Runtime refuses an option ({text[:300]}): "
            "install the version that the engine was made with"
        )
    return None


def why_missing(names: Sequence[str], package: str = "'onnxruntime-gpu[cuda,cudnn]'") -> str:
    """Return why sessions lack providers, and what to do; `package` is what to install for them."""
    import onnxruntime as ort

    has = ort.get_available_providers()
    lacks = [name for name in names if name not in has]
    if lacks:
        return (
            f"this onnxruntime is built without {' and '.join(lacks)} (it has {', '.join(has)}): on a machine with an "
            "NVIDIA GPU run pip "
            f"uninstall onnxruntime, then pip install {package}, then pip install --force-reinstall --no-deps "
            "onnxruntime-gpu, since both "
            "packages write the same files"
        )
    return "; ".join(_why_not_loaded(name) for name in names)


def _why_not_loaded(name: str) -> str:
    """Say which library a provider does not find; the loader names one at a time."""
    reason = loader_error(name)
    start = f"onnxruntime has {name}, and a session does not get it"
    if reason is None:
        return f"{start}, though its libraries load: see what ONNX Runtime wrote, and whether nvidia-smi shows the GPU"
    return f"{start} ({reason}): {_mend(reason)}"


def package_with_library(reason: str, ort_version: str, cuda_version: str | None) -> str:
    """Return the package that brings the library which the loader does not find, for an ONNX Runtime of this version,
    made for this CUDA: TensorRT of the version in the library's name, or else CUDA and cuDNN.
    """
    found = _TENSORRT_LIBRARY.search(reason)
    if found is None:
        return f"onnxruntime-gpu[cuda,cudnn]=={ort_version}"
    cuda, major = (cuda_version or "13").split(".")[0], int(found[1])
    return f"tensorrt-cu{cuda}>={major},<{major + 1}"


def _mend(reason: str) -> str:
    import onnxruntime as ort

    if _NO_DRIVER.search(reason):
        return "the NVIDIA driver is not installed: install it (in a container, start that with the GPUs)"
    made_for = getattr(ort, "cuda_version", None)
    install = f"pip install '{package_with_library(reason, ort.__version__, made_for)}'"
    tensorrt = _TENSORRT_LIBRARY.search(reason)
    if tensorrt is not None:
        version = getattr(_tensorrt_module(), "__version__", None)
        other = f"tensorrt {version} is installed, which has another name; " if version is not None else ""
        return f"{other}this provider is made for TensorRT {tensorrt[1]}: {install}"
    return f"{install}, which is made for CUDA {made_for} and cuDNN 9" if made_for else install


def loader_error(name: str) -> str | None:
    """Return what the system says when it loads a provider's library, None when it loads."""
    import onnxruntime as ort

    folder = Path(ort.__file__).parent / "capi"
    file = folder / _PROVIDER_FILES.get(name, name)
    if not file.is_file():  # another system's name, or built in
        return None
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(file))
    except OSError as error:
        return str(error)
    return None


@cache
def _tensorrt_module() -> Any:
    """Return the module `tensorrt`, which loads TensorRT's libraries when it is imported, or the exception that it ends
    with.
    """
    try:
        return importlib.import_module("tensorrt")
    except Exception as error:  # noqa: BLE001
        # a library that does not load ends in OSError, RuntimeError or AttributeError
        return error
