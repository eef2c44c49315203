"""Clocks and temperature of an NVIDIA GPU, and why it slows down: from the driver's management library (NVML), by
ctypes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from functools import cache
from typing import Any, NamedTuple

from deploy.runner.cuda_library import first_gpu_uuid

NVML_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
SLOWDOWNS: Mapping[int, str] = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by the driver",
    0x40: "thermal slowdown by the hardware",
    0x80: "power brake",
}
"""Reasons for a lower clock that are no part of normal work, by their bits in NVML (nvmlClocksEventReasons)."""
POWER_CAP = "power cap"
"""Normal work of a GPU that has more to do than its power limit allows: it is told, and no reason to measure again."""
_POWER_CAP_BIT = 0x04
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
"""The name of today, and that of drivers before 535."""
_SM_CLOCK, _GPU_SENSOR, _THERMAL = 1, 0, 1
_NAME_CHARACTERS = 96


class _Violation(ctypes.Structure):
    """Since when NVML counts, and for how many nanoseconds a limit was in force."""

    _fields_ = (("reference_us", c_ulonglong), ("violation_ns", c_ulonglong))


_NVML_SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "nvmlInit_v2": (),
    "nvmlDeviceGetCount_v2": (POINTER(c_uint),),
    "nvmlDeviceGetHandleByIndex_v2": (c_uint, POINTER(c_void_p)),
    "nvmlDeviceGetHandleByUUID": (c_char_p, POINTER(c_void_p)),
    "nvmlDeviceGetName": (c_void_p, c_char_p, c_uint),
    "nvmlDeviceGetUUID": (c_void_p, c_char_p, c_uint),
    "nvmlDeviceGetClockInfo": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetMaxClockInfo": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetTemperature": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetViolationStatus": (c_void_p, c_int, POINTER(_Violation)),
    **dict.fromkeys(_REASONS, (c_void_p, POINTER(c_ulonglong))),
}
"""Arguments of what is called, from nvml.h; every function returns an nvmlReturn_t."""


class NvmlReading(NamedTuple):
    """What the management library tells of one GPU at one moment; None for what it does not tell.

    `limits` are the reasons for a lower clock that are in force. `thermal_ns` counts the nanoseconds of thermal limits
    since the driver was loaded.
    """

    name: str | None
    uuid: str | None
    sm_mhz: float | None
    sm_max_mhz: float | None
    temperature_c: float | None
    limits: tuple[str, ...]
    thermal_ns: int | None


def read_gpu() -> NvmlReading | None:
    """Read the GPU that CUDA takes first; None where there is none, or no management library."""
    library = _opened(NVML_LIBRARY)
    gpu = _first_gpu(library) if library is not None else None
    if library is None or gpu is None:
        return None
    violation = _told(library, "nvmlDeviceGetViolationStatus", _Violation(), gpu, _THERMAL)
    return NvmlReading(
        name=_text_of(library, "nvmlDeviceGetName", gpu),
        uuid=_text_of(library, "nvmlDeviceGetUUID", gpu),
        sm_mhz=_number_of(library, "nvmlDeviceGetClockInfo", gpu, _SM_CLOCK),
        sm_max_mhz=_number_of(library, "nvmlDeviceGetMaxClockInfo", gpu, _SM_CLOCK),
        temperature_c=_number_of(library, "nvmlDeviceGetTemperature", gpu, _GPU_SENSOR),
        limits=_limits(library, gpu),
        thermal_ns=violation.violation_ns if violation is not None else None,
    )


@cache
def _opened(name: str) -> ctypes.CDLL | None:
    """Load and start the library once, for the whole process; None where that fails."""
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    for function, arguments in _NVML_SIGNATURES.items():
        if hasattr(library, function):
            getattr(library, function).argtypes = arguments
    return library if _succeeds(library, "nvmlInit_v2") else None


def _first_gpu(library: ctypes.CDLL) -> c_void_p | None:
    """Return the GPU that CUDA takes first. Of several ones CUDA has to be asked: it has another order, and may be told
    to hide some.
    """
    count = _told(library, "nvmlDeviceGetCount_v2", c_uint())
    if count is None or count.value == 0:
        return None
    gpu = c_void_p()
    if count.value == 1:
        return gpu if _succeeds(library, "nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(gpu)) else None
    uuid = first_gpu_uuid()
    if uuid is None or not _succeeds(library, "nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(gpu)):
        return None
    return gpu


def _limits(library: ctypes.CDLL, gpu: c_void_p) -> tuple[str, ...]:
    found = (_told(library, name, c_ulonglong(), gpu) for name in _REASONS)
    bits = next((reasons.value for reasons in found if reasons is not None), 0)
    cap = (POWER_CAP,) if bits & _POWER_CAP_BIT else ()
    return (*(text for bit, text in SLOWDOWNS.items() if bits & bit), *cap)


def _succeeds(library: ctypes.CDLL, name: str, *arguments: Any) -> bool:
    """Call a function, which an older library may lack."""
    return hasattr(library, name) and getattr(library, name)(*arguments) == 0


def _told(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    """Call a function that writes its result to its last argument; returns that, or None where it is not told."""
    return result if _succeeds(library, name, *arguments, ctypes.byref(result)) else None


def _number_of(library: ctypes.CDLL, name: str, *arguments: Any) -> float | None:
    found = _told(library, name, c_uint(), *arguments)
    return float(found.value) if found is not None else None


def _text_of(library: ctypes.CDLL, name: str, gpu: c_void_p) -> str | None:
    text = ctypes.create_string_buffer(_NAME_CHARACTERS)
    return (
        text.value.decode(errors="replace") or None if _succeeds(library, name, gpu, text, _NAME_CHARACTERS) else None
    )
