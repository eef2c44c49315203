"""What the libraries of a machine do when they are used a little: each is tried in a process of its own, since it may
crash or hang.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.runner.cuda_driver import DriverCuda
from deploy.runner.cuda_library import DRIVER_LIBRARY, load_driver
from deploy.runner.doctor_gpus import all_gpus, bounded
from deploy.runner.errors import MissingModule
from deploy.runner.nvml import read_gpu
from deploy.runner.ort_gpu import ORT_CPU, ORT_CUDA, ORT_TENSORRT, load_gpu_libraries, loader_error
from deploy.runner.state import machine

PROBE_SECONDS = 150
"""The first session of a TensorRT provider takes half a minute on a small Jetson."""
_PLACE = Path(__file__).parents[2]
"""The directory or archive that this package is imported from."""
_START = """\
import sys
sys.path[:] = [sys.argv.pop(1), *filter(None, sys.path)]
from deploy.runner.doctor import main
sys.exit(main(sys.argv[1:]))
"""
# ONNX: y = Relu(x) with four floats.
_TINY_MODEL = bytes.fromhex(
    "08083a3b0a0c0a0178120179220452656c751201675a130a0178120e0a0c080112080a0208010a0208046213"
    "0a0179120e0a0c080112080a0208010a02080442040a00100d"
)
_LIBRARY_OF_CUDA = re.compile(r"libcudart\.so\.(\d+)")
_SHOWN_LIBRARIES = re.compile(r"lib(?:nvinfer|tensorrt_rtx|cudart|cuda)[\w-]*\.so[.\d]*$")


def run_probes(names: Sequence[str], root: Path) -> dict[str, Any]:
    """Run probes at the same time, each in its own process of this Python; returns their answers by name.

    The answer of one that crashes, hangs or prints something else is {"trouble": how it ended}.
    """
    with tempfile.TemporaryDirectory() as directory:
        started = {name: _started(name, Path(directory), root) for name in names}
        deadline = time.monotonic() + PROBE_SECONDS
        return {name: _ended(process, Path(directory) / name, deadline) for name, process in started.items()}


def answer_probe(name: str, answer: Path, root: Path) -> int:
    """Run one probe in this process, and write what it finds to a file; libraries print to the standard output as they
    like.
    """
    answer.write_text(json.dumps(PROBES[name](root)), encoding="utf-8")
    return 0


def _started(name: str, directory: Path, root: Path) -> subprocess.Popen[bytes]:
    arguments = ["--root", str(root), "--probe", name, str(directory / name)]
    with (directory / f"{name}.log").open("wb") as log:
        command = [sys.executable, "-c", _START, str(_PLACE), *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _ended(process: subprocess.Popen[bytes], answer: Path, deadline: float) -> Any:
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return {"trouble": f"it did not answer in {PROBE_SECONDS} s"}
    log = answer.with_name(f"{answer.name}.log").read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    try:
        found = json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if code == 0 and isinstance(found, dict):
        return {**found, "said": bounded(_telling(lines))}
    how = f"it crashed with {_signal_name(-code)}" if code < 0 else f"it ended with exit code {code}"
    how = f"{how}: {lines[-1]}" if lines else how
    # a library that crashes when its process ends has answered before
    return {**found, "said": bounded(how)} if isinstance(found, dict) else {"trouble": bounded(how)}


def _telling(lines: Sequence[str]) -> str:
    """Return the line of a log that says most: the first with an error, or the last."""
    errors = [line for line in lines if re.search(r"error|fail|cannot|insufficient", line, re.IGNORECASE)]
    return (errors or [*lines[-1:], ""])[0]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _probe_machine(root: Path) -> dict[str, Any]:
    """Name the machine as measurements do, and read the first GPU's clocks from the driver's management library."""
    gpu = read_gpu() if root == Path("/") else None
    return {
        "name": bounded(machine(root)),
        "mhz": gpu.sm_mhz if gpu is not None else None,
        "max_mhz": gpu.sm_max_mhz if gpu is not None else None,
        "limits": list(gpu.limits) if gpu is not None else [],
        "trouble": None,
    }


def _probe_cuda() -> dict[str, Any]:
    """Open the GPUs as the timing of engines does."""
    found: dict[str, Any] = {"library": None, "cuda_version": None, "gpus": [], "trouble": None}
    try:
        library = load_driver()
        found["library"] = next(
            iter(_loaded(re.compile(rf"{re.escape(DRIVER_LIBRARY.split('.')[0])}\.so"))), DRIVER_LIBRARY
        )
        version = ctypes.c_int()
        library.cuDriverGetVersion(ctypes.byref(version))
        found["cuda_version"] = [version.value // 1000, version.value % 1000 // 10]
        found["gpus"] = all_gpus(library)
        DriverCuda(library).close()
    except OSError as error:
        found["trouble"] = bounded(f"the driver's library does not load ({error})")
    except MissingModule as error:
        found["library"] = found["library"] or DRIVER_LIBRARY  # it is there, and too old
        found["trouble"] = bounded(error)
    return found


def _probe_trt(name: str) -> dict[str, Any]:
    """Import one of the TensorRT modules and make a builder, which is the first thing that needs its library."""
    found: dict[str, Any] = {"version": None, "place": None, "builder": False, "cuda_major": None, "trouble": None}
    module = _imported(name, found)
    if module is None:
        return found
    found["place"] = bounded(Path(str(module.__file__)).parent)
    try:
        found["builder"] = module.Builder(module.Logger(module.Logger.ERROR)) is not None
    except Exception as error:  # noqa: BLE001 - whatever a binding raises is the finding
        found["trouble"] = bounded(error)
    majors = [int(match.group(1)) for match in map(_LIBRARY_OF_CUDA.search, _loaded(_SHOWN_LIBRARIES)) if match]
    found["cuda_major"] = majors[0] if majors else None
    return found


def _probe_ort(provider: str) -> dict[str, Any]:
    """Run a tiny model on one of ONNX Runtime's providers."""
    found: dict[str, Any] = {
        "version": None, "available": [], "cuda_version": None, "kept": False, "ran": False, "trouble": None,
        "refused": None,
    }  # fmt: skip
    module = _imported("onnxruntime", found)
    if module is None:
        return found
    try:
        found["available"] = [bounded(name) for name in module.get_available_providers()]
        found["cuda_version"] = bounded(module.cuda_version) if getattr(module, "cuda_version", None) else None
        if provider not in found["available"]:
            return found
        if provider != ORT_CPU:
            load_gpu_libraries(tensorrt=provider == ORT_TENSORRT)
        session = module.InferenceSession(_TINY_MODEL, providers=[provider])
        found["kept"] = provider in session.get_providers()
        if not found["kept"]:
            found["refused"] = bounded(loader_error(provider) or "")
            return found
        import numpy as np

        session.run(None, {"x": np.zeros((1, 4), np.float32)})
        found["ran"] = True
    except Exception as error:  # noqa: BLE001 - whatever a provider raises is the finding
        found["trouble"] = bounded(error)
    return found


def _probe_numpy() -> dict[str, Any]:
    found: dict[str, Any] = {"version": None, "trouble": None}
    _imported("numpy", found)
    return found


def _probe_pycuda() -> dict[str, Any]:
    found: dict[str, Any] = {"version": None, "trouble": None}
    if _imported("pycuda", found) is not None:
        try:
            importlib.import_module("pycuda.driver")
        except Exception as error:  # noqa: BLE001 - whatever it raises is the finding
            found["trouble"] = bounded(error)
    return found


def _probe_torch() -> dict[str, Any]:
    found: dict[str, Any] = {"version": None, "build": None, "cuda": False, "trouble": None}
    module = _imported("torch", found)
    if module is not None:
        found["build"] = bounded(module.version.cuda) if module.version.cuda else None
        found["cuda"] = bool(module.cuda.is_available())
    return found


PROBES: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "machine": _probe_machine,
    "numpy": lambda _root: _probe_numpy(),
    "cuda": lambda _root: _probe_cuda(),
    "tensorrt": lambda _root: _probe_trt("tensorrt"),
    "tensorrt_rtx": lambda _root: _probe_trt("tensorrt_rtx"),
    "ort_cpu": lambda _root: _probe_ort(ORT_CPU),
    "ort_cuda": lambda _root: _probe_ort(ORT_CUDA),
    "ort_tensorrt": lambda _root: _probe_ort(ORT_TENSORRT),
    "pycuda": lambda _root: _probe_pycuda(),
    "torch": lambda _root: _probe_torch(),
}


def _imported(name: str, found: dict[str, Any]) -> Any:
    """Import a module and note its version; None when it is not there, or does not load, of which the reason is
    noted.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            found["trouble"] = bounded(error)
        return None
    except Exception as error:  # noqa: BLE001 - whatever loading a library ends with is the finding
        found["trouble"] = bounded(error)
        return None
    version = getattr(module, "__version__", None) or getattr(module, "VERSION_TEXT", None)
    found["version"] = bounded(version) if version else "unknown"
    return module


def _loaded(pattern: re.Pattern[str]) -> list[str]:
    """Return the paths of libraries that this process has loaded and whose name fits."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(None, 5)[5] for line in lines if len(line.split(None, 5)) == 6)
    return [bounded(path) for path in paths if pattern.search(Path(path).name)]
