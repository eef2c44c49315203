"""The machine that measures: its name, its clocks and temperatures, and whether it slowed down; what it does not tell
is None.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.runner.nvml import POWER_CAP, read_gpu

QUIET = 0.06
"""Beside other work an engine takes this share longer than at its fastest, or more."""
REMEMBERED = 4
"""So many measurements know of each other how fast the float engine is: a machine that grows warm is slower for good.
"""
_THROTTLED_BELOW = 0.9
_GPU_CLOCK = re.compile(r"gpu|gv11b|ga10b|gb10b")


def machine(root: Path = Path("/")) -> str:
    """Name processor or board, Jetson's power mode, GPU and system; measurements of machines with another name are not
    mixed.
    """
    board = _text(root / "proc/device-tree/model") or _cpu_name(root) or platform.processor() or platform.machine()
    mode = power_mode(root)
    gpu = read_gpu() if root == Path("/") else None
    parts = [
        f"{board} ({mode})" if mode else board,
        gpu.name if gpu is not None else None,
        f"{platform.system()} {platform.machine()}",
    ]
    name = ", ".join(part for part in parts if part)
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def read_state(root: Path = Path("/")) -> dict[str, Any]:
    """Return clocks in MHz, temperatures in degrees Celsius by sensor, and what slows the machine down.

    1. `limits` are the reasons for a lower clock of the GPU that are in force.
    2. `counters` only ever rise, each time or for as long as something slows the machine down: events of over-current
       and low voltage of a Jetson (`oc1_event_cnt` to `oc3_event_cnt`), thermal events of x86 (`core_throttle_count`),
       nanoseconds of thermal limits of an NVIDIA GPU (`gpu_thermal_ns`).
    """
    gpu = read_gpu() if root == Path("/") else None
    jetson = jetson_gpu_mhz(root)
    return {
        "cpu_mhz": _fastest(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"), 1e3),
        "gpu_mhz": jetson["cur"] or (gpu.sm_mhz if gpu is not None else None),
        "gpu_max_mhz": jetson["max"] or (gpu.sm_max_mhz if gpu is not None else None),
        "temperatures_c": _temperatures(root, gpu.temperature_c if gpu is not None else None),
        "limits": list(gpu.limits) if gpu is not None else [],
        "counters": _counters(root, gpu.thermal_ns if gpu is not None else None),
    }


def throttle_reasons(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what slowed the machine down between two states, nothing where that is not known.

    1. A limit of the GPU that is in force in one of the states, but for its power cap, which is normal work.
    2. A counter that rose.
    3. A clock that fell by more than 10 %.
    """
    limits = [f"GPU: {name}" for name in dict.fromkeys([*before["limits"], *after["limits"]]) if name != POWER_CAP]
    there = before["counters"]
    risen = [
        f"{name} rose by {now - there[name]}"
        for name, now in after["counters"].items()
        if name in there and now > there[name]
    ]
    clocks = [(part, before[name], after[name]) for part, name in (("CPU", "cpu_mhz"), ("GPU", "gpu_mhz"))]
    fallen = [
        f"the clock of the {part} fell from {then:.0f} to {now:.0f} MHz"
        for part, then, now in clocks
        if then and now and now < _THROTTLED_BELOW * then
    ]
    return [*limits, *risen, *fallen]


def jetson_release(root: Path = Path("/")) -> str | None:
    """Return the line that names Jetson's release, None on other machines."""
    return _first_line(root / "etc/nv_tegra_release")


def _cpu_name(root: Path) -> str | None:
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _fastest(files: Any, units_in_a_mhz: float) -> float | None:
    values = [int(text) for text in map(_text, files) if text and text.isdigit()]
    return max(values) / units_in_a_mhz if values else None


def jetson_gpu_mhz(root: Path = Path("/")) -> dict[str, float | None]:
    """Return the clocks of Jetson's GPU in MHz: now ("cur"), least ("min") and most ("max"); None where there is none.

    Its device is called 17000000.gpu on Orin, and gpu-gpc-0 on Thor.
    """
    places = [place for place in root.glob("sys/class/devfreq/*") if _GPU_CLOCK.search(place.name)]
    return {name: _fastest((place / f"{name}_freq" for place in places), 1e6) or None for name in ("cur", "min", "max")}


def _temperatures(root: Path, gpu_c: float | None) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name, value = _text(zone / "type"), _text(zone / "temp")
        if name and value and value.lstrip("-").isdigit():
            found[name] = int(value) / 1000
    if gpu_c is not None:
        found["gpu"] = gpu_c
    return found or None


def _counters(root: Path, gpu_thermal_ns: int | None) -> dict[str, int]:
    found = {"gpu_thermal_ns": gpu_thermal_ns} if gpu_thermal_ns is not None else {}
    for pattern in (
        "sys/class/hwmon/hwmon*/oc*_event_cnt",
        "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count",
    ):
        for file in root.glob(pattern):
            text = _text(file)
            if text and text.isdigit():
                found[file.name] = found.get(file.name, 0) + int(text)
    return found


def power_mode(root: Path = Path("/")) -> str | None:
    """Return the name of Jetson's power mode, None on other machines: nvpmodel keeps its number in one file and the
    names in another.
    """
    number = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if number is None:
        return None
    names = _text(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number.group(1)}\s+NAME=(\S+)\s*>", names)
    return name.group(1) if name else f"mode {number.group(1)}"


def _first_line(file: Path) -> str | None:
    text = _text(file)
    return text.splitlines()[0] if text else None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n") or None
    except OSError:
        return None
