"""CUDA through the driver's own library, by ctypes: device memory, copies, one stream, events and graphs."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_ulonglong, c_void_p
from typing import TYPE_CHECKING, Any

from deploy.runner.errors import BuildError, CudaError, MissingModule

if TYPE_CHECKING:  # the program that looks at a machine holds this module too, and numpy may be missing there
    import numpy.typing as npt

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_ADDRESS = c_ulonglong
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
    "cuMemAlloc_v2": (POINTER(_ADDRESS), c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemsetD8Async": (_ADDRESS, c_ubyte, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _ADDRESS, c_size_t, c_void_p),
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
_THREAD_LOCAL, _NON_BLOCKING = 1, 1
_SM_COUNT, _L2_BYTES, _MAJOR, _MINOR = 16, 38, 75, 76
_NAME_BYTES = 256
_TO_DO: Mapping[int, str] = {
    34: "the library that was found is the stub of the CUDA toolkit, which is for linking only: take its folder `stubs` out of "
    "LD_LIBRARY_PATH, and install the driver",
    100: "the driver sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, start it with --gpus all, or "
    "--runtime nvidia on a Jetson",
    802: "the system is not ready: start nvidia-fabricmanager",
    803: "the driver's library is of another version than its kernel module: restart the machine, or take other copies of the "
    "library, as of a `compat` folder, out of LD_LIBRARY_PATH",
    804: "the library of a newer driver, from a `compat` folder, does not serve this GPU: take it out of LD_LIBRARY_PATH",
    999: "the driver does not start: load the kernel module nvidia_uvm or restart the machine; on a Jetson, add yourself to the "
    "groups video and render",
}
"""What to do about a code of cuInit."""
_RUNTIME_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")


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
                f"running an engine needs a driver for CUDA {_OLDEST_DRIVER} or later, and {_driver_text(library)} has "
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
        _start(library)
        return _uuid(library, _device(library))
    except (OSError, MissingModule, CudaError):
        return None


class DriverCuda:
    """The adapter for the driver's library, in the primary context of the first GPU, which TensorRT uses too.

    The primary context is not given back: TensorRT may still hold objects in it, and it goes with the process.
    """

    library = "CUDA driver"

    def __init__(self, library: ctypes.CDLL) -> None:
        """`library` is what `load_driver` returns. Raises MissingModule when the driver does not start or has no
        GPU.
        """
        self._library = library
        self._graphs: list[c_void_p] = []
        self.driver_version = _start(library)
        try:
            self._device = _device(library)
            context = self._made("cuDevicePrimaryCtxRetain", c_void_p(), self._device)
            self._call("cuCtxSetCurrent", context)
            # A stream that does not wait for the default one: work on the default stream would end a capture.
            self._stream = self._made("cuStreamCreate", c_void_p(), _NON_BLOCKING)
            self._events = [self._made("cuEventCreate", c_void_p(), 0) for _ in range(2)]
        except CudaError as error:
            raise MissingModule(
                f"running an engine needs an NVIDIA GPU, and {_driver_text(library)} gives none: {error}. Look at "
                "nvidia-smi for "
                "what occupies it, or restart the machine"
            ) from error
        self.stream = int(self._stream.value or 0)
        self.uuid: str | None = _uuid(library, self._device)
        self.l2_bytes, self.sm_count = (self._attribute(kind) for kind in (_L2_BYTES, _SM_COUNT))

    def device_name(self) -> str:
        """See `Cuda`."""
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, self._device)
        return name.value.decode(errors="replace")

    def compute_capability(self) -> tuple[int, int]:
        """See `Cuda`."""
        return self._attribute(_MAJOR), self._attribute(_MINOR)

    def memory_bytes(self) -> tuple[int, int]:
        """See `Cuda`."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size_bytes: int) -> int:
        """See `Cuda`."""
        return int(self._made("cuMemAlloc_v2", _ADDRESS(), size_bytes).value)

    def free(self, address: int) -> None:
        """See `Cuda`."""
        self._library.cuMemFree_v2(address)

    def fill(self, address: int, size_bytes: int) -> None:
        """See `Cuda`."""
        self._call("cuMemsetD8Async", address, 0, size_bytes, self._stream)

    def copy_to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `Cuda`."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self._stream)

    def copy_to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """See `Cuda`."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._stream)

    def synchronize(self) -> None:
        """See `Cuda`."""
        self._call("cuStreamSynchronize", self._stream)

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """See `Cuda`."""
        start, end = self._events
        self._call("cuEventRecord", start, self._stream)
        work()
        self._call("cuEventRecord", end, self._stream)
        self._call("cuEventSynchronize", end)
        return float(self._made("cuEventElapsedTime", c_float(), start, end).value)

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """See `Cuda`. The work has to have run once, so that what is made at the first run is not captured.

        A capture that fails is ended, what was captured is destroyed, and the last error of the CUDA runtime is
        cleared, in this order, as in trtexec (NVIDIA/TensorRT, samples/common/sampleDevice.h). Raises CudaError when
        the stream does not work after that.
        """
        self._call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        refused = True
        try:
            with suppress(
                BuildError, RuntimeError
            ):  # of TensorRT, of its binding, or of this adapter: not to be captured
                work()
                refused = False
        finally:
            executable = self._end_capture(refused)
        if executable is None:
            self.synchronize()
            return None
        self._graphs.append(executable)
        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """See `Cuda`."""
        for graph in self._graphs:
            self._library.cuGraphExecDestroy(graph)
        for event in self._events:
            self._library.cuEventDestroy_v2(event)
        self._graphs, self._events = [], []
        if self._stream:
            self._library.cuStreamDestroy_v2(self._stream)
        self._stream = c_void_p()

    def _end_capture(self, refused: bool) -> c_void_p | None:
        """End the capture; returns the graph to launch, or None when nothing was captured, with nothing left of it."""
        graph, executable = c_void_p(), c_void_p()
        code = self._library.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if code == 0 and not refused:
            code = self._library.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
        if graph:
            self._library.cuGraphDestroy(graph)
        if code == 0 and not refused:
            return executable
        _clear_runtime_error()
        return None

    def _attribute(self, kind: int) -> int:
        return int(self._made("cuDeviceGetAttribute", c_int(), kind, self._device).value)

    def _call(self, name: str, *arguments: Any) -> None:
        _checked(self._library, name, *arguments)

    def _made(self, name: str, result: Any, *arguments: Any) -> Any:
        """Call a function that writes its result to its first argument; returns that."""
        self._call(name, ctypes.byref(result), *arguments)
        return result


def _checked(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
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


def _start(library: ctypes.CDLL) -> tuple[int, int]:
    """Start the driver; returns its CUDA version. MissingModule with what is there and what to do when it does not
    start.
    """
    code = library.cuInit(0)
    if code != 0:
        todo = _TO_DO.get(code, "look at nvidia-smi, and restart the machine or install the driver again")
        raise MissingModule(
            f"running an engine needs an NVIDIA GPU with its driver, and {_driver_text(library)} answers "
            f"{_error_text(library, code)}: "
            f"{todo}"
        )
    return _driver_version(library)


def _driver_version(library: ctypes.CDLL) -> tuple[int, int]:
    version = c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _driver_text(library: ctypes.CDLL) -> str:
    """Name the driver's library and the CUDA version that it knows; it need not have been started."""
    version = (0, 0)
    with suppress(AttributeError):
        version = _driver_version(library)
    return f"{DRIVER_LIBRARY} (for CUDA {version[0]}.{version[1]})" if version[0] else DRIVER_LIBRARY


def _device(library: ctypes.CDLL) -> int:
    device = c_int()
    _checked(library, "cuDeviceGet", ctypes.byref(device), 0)
    return device.value


def _uuid(library: ctypes.CDLL, device: int) -> str:
    """Return the UUID in the spelling of nvidia-smi."""
    content = (c_ubyte * 16)()
    _checked(library, "cuDeviceGetUuid", ctypes.byref(content), device)
    text = bytes(content).hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _clear_runtime_error() -> None:
    """Clear the last error of the CUDA runtime that TensorRT has loaded, which its next call would take for its own.

    The driver's library has no last error. A runtime that is linked into TensorRT is not reached, as by trtexec.
    """
    if sys.platform == "win32":
        return
    import os

    for name in _RUNTIME_LIBRARIES:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).cudaGetLastError()
