"""Every GPU that the driver sees, by ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

from deploy.runner.cuda_library import checked, device_uuid
from deploy.runner.errors import CudaError

_LONGEST_TEXT = 500
_MOST_GPUS = 16
_KINDS = {"sm_count": 16, "l2_bytes": 38}
_CAPABILITY_KINDS = (75, 76)
"""Of CUdevice_attribute, in cuda.h of CUDA 12.6."""


def bounded(text: Any) -> str:
    """Return a text in one line of bounded length, as it is sent from a device."""
    return " ".join(str(text).split())[:_LONGEST_TEXT]


def all_gpus(library: ctypes.CDLL) -> list[dict[str, Any]]:
    """Describe every GPU that CUDA sees: name, UUID, compute capability, multiprocessors, L2 cache, total and free
    memory in bytes.

    `library` is the driver's, which is started here. `trouble` says why a GPU takes no context, None when it does; then
    the free memory is not known. Without a GPU, or where the driver does not start, there is none.
    """
    count = ctypes.c_int()
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [_gpu(library, ordinal) for ordinal in range(min(count.value, _MOST_GPUS))]


def _gpu(library: ctypes.CDLL, ordinal: int) -> dict[str, Any]:
    names = ("name", "uuid", "compute_capability", "sm_count", "l2_bytes", "memory_total", "memory_free", "trouble")
    found: dict[str, Any] = dict.fromkeys(names)
    try:
        device = ctypes.c_int()
        checked(library, "cuDeviceGet", ctypes.byref(device), ordinal)
        name = ctypes.create_string_buffer(256)
        checked(library, "cuDeviceGetName", name, 256, device)
        found["name"] = bounded(name.value.decode(errors="replace"))
        found["uuid"] = device_uuid(library, device.value)
        found["compute_capability"] = [_attribute(library, device, kind) for kind in _CAPABILITY_KINDS]
        found.update({name: _attribute(library, device, kind) for name, kind in _KINDS.items()})
        found.update(_memory(library, device))
    except (CudaError, AttributeError) as error:
        found["trouble"] = bounded(error)
    return found


def _memory(library: ctypes.CDLL, device: ctypes.c_int) -> dict[str, int]:
    """Return total and free memory; the latter takes a context, which is given back."""
    total, free = ctypes.c_size_t(), ctypes.c_size_t()
    checked(library, "cuDeviceTotalMem_v2", ctypes.byref(total), device)
    context = ctypes.c_void_p()
    checked(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        checked(library, "cuCtxSetCurrent", context)
        checked(library, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    finally:
        library.cuDevicePrimaryCtxRelease_v2(device)
    return {"memory_total": total.value, "memory_free": free.value}


def _attribute(library: ctypes.CDLL, device: ctypes.c_int, kind: int) -> int:
    value = ctypes.c_int()
    checked(library, "cuDeviceGetAttribute", ctypes.byref(value), kind, device)
    return value.value
