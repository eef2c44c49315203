"""The CUDA driver's own library, by ctypes: what is called, and what its errors mean."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from contextlib import suppress
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_ulonglong, c_void_p
from typing import Any

from deploy.runner.errors import CudaError, MissingModule

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


DEVICE_ADDRESS = c_ulonglong
"""CUdeviceptr. Handles (CUcontext, CUstream, CUevent, CUgraph, CUgraphExec) are pointers."""


_SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetUuid": (POINTER(c_ubyte * 16), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(DEVICE_ADDRESS), c_size_t),
    "cuMemFree_v2": (DEVICE_ADDRESS,),
    "cuMemsetD8Async": (DEVICE_ADDRESS, c_ubyte, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (DEVICE_ADDRESS, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, DEVICE_ADDRESS, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}
"""Arguments of what is called, from cuda.h of CUDA 12.6; every function returns a CUresult. All are in drivers from
CUDA 11.4 on.
"""


_OLDEST_DRIVER = "11.4"


_TO_DO: Mapping[int, str] = {
    34: "the library that was found is the stub of the CUDA toolkit, which is for linking only: take its folder "
    "`stubs` out of LD_LIBRARY_PATH, and install the driver",
    100: "the driver sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, start it with --gpus "
    "all, or --runtime nvidia on a Jetson",
    802: "the system is not ready: start nvidia-fabricmanager",
    803: "the driver's library is of another version than its kernel module: restart the machine, or take other copies "
    "of the library, as of a `compat` folder, out of LD_LIBRARY_PATH",
    804: "the library of a newer driver, from a `compat` folder, does not serve this GPU: "
    "take it out of LD_LIBRARY_PATH",
    999: "the driver does not start: load the kernel module nvidia_uvm or restart the machine; on a Jetson, add "
    "yourself to the groups video and render",
}
"""What to do about a code of cuInit."""


def load_driver() -> ctypes.CDLL:
    """Load the driver's library and declare what is called; OSError when there is none, MissingModule when it is too
    old.
    """
    library = ctypes.CDLL(DRIVER_LIBRARY)
    for name, arguments in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise MissingModule(
                f"running an engine needs a driver for CUDA {_OLDEST_DRIVER} or later, and {driver_text(library)} has "
                f"no {name}: "
                "update the driver"
            ) from error
        function.argtypes, function.restype = arguments, c_int
    return library


def first_gpu_uuid() -> str | None:
    """Return the UUID of the GPU that CUDA takes first, as in "GPU-0a1b...", without a context on it; None where there
    is none.
    """
    try:
        library = load_driver()
        start_driver(library)
        return device_uuid(library, first_device(library))
    except (OSError, MissingModule, CudaError):
        return None


def checked(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """Call a function; CudaError with the name and the words of its code where that is not 0."""
    code = getattr(library, name)(*arguments)
    if code != 0:
        raise CudaError(f"{_error_text(library, code)} in {name}")


def _error_text(library: ctypes.CDLL, code: int) -> str:
    texts = []
    for ask in (library.cuGetErrorName, library.cuGetErrorString):
        text = c_char_p()
        if ask(code, ctypes.byref(text)) == 0 and text.value:
            texts.append(text.value.decode(errors="replace"))
    return f"{texts[0]} ({', '.join([*texts[1:], f'code {code}'])})" if texts else f"CUDA error {code}"


def start_driver(library: ctypes.CDLL) -> tuple[int, int]:
    """Start the driver; returns its CUDA version. MissingModule with what is there and what to do when it does not
    start.
    """
    code = library.cuInit(0)
    if code != 0:
        todo = _TO_DO.get(code, "look at nvidia-smi, and restart the machine or install the driver again")
        raise MissingModule(
            f"running an engine needs an NVIDIA GPU with its driver, and {driver_text(library)} answers "
            f"{_error_text(library, code)}: "
            f"{todo}"
        )
    return _driver_version(library)


def _driver_version(library: ctypes.CDLL) -> tuple[int, int]:
    version = c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def driver_text(library: ctypes.CDLL) -> str:
    """Name the driver's library and the CUDA version that it knows; it need not have been started."""
    version = (0, 0)
    with suppress(AttributeError):
        version = _driver_version(library)
    return f"{DRIVER_LIBRARY} (for CUDA {version[0]}.{version[1]})" if version[0] else DRIVER_LIBRARY


def first_device(library: ctypes.CDLL) -> int:
    """Return the handle of the GPU that CUDA takes first."""
    device = c_int()
    checked(library, "cuDeviceGet", ctypes.byref(device), 0)
    return device.value


def device_uuid(library: ctypes.CDLL, device: int) -> str:
    """Return the UUID in the spelling of nvidia-smi."""
    content = (c_ubyte * 16)()
    checked(library, "cuDeviceGetUuid", ctypes.byref(content), device)
    text = bytes(content).hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
