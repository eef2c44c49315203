"""The machine that measures: its name, and the clocks and temperatures that it tells; what it does not tell is None."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_THROTTLED_BELOW = 0.9
_QUERY_SECONDS = 20
_GPU_CLOCK = re.compile(r"gpu|gv11b|ga10b|gb10b")


def machine(root: Path = Path("/")) -> str:
    """Name processor or board, Jetson's power mode, GPU and system; measurements of machines with another name are not mixed."""
    board = _text(root / "proc/device-tree/model") or _cpu_name(root) or platform.processor() or platform.machine()
    mode = _power_mode(root)
    gpu = _nvidia_smi("name") if root == Path("/") else None
    parts = [f"{board} ({mode})" if mode else board, gpu, f"{platform.system()} {platform.machine()}"]
    name = ", ".join(part for part in parts if part)
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def read_state(root: Path = Path("/")) -> dict[str, Any]:
    """Return the clocks in MHz, temperatures in degrees Celsius by sensor, and Jetson's release and power mode."""
    return {
        "cpu_mhz": _fastest(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"), 1e3),
        "gpu_mhz": _gpu_mhz(root),
        "temperatures_c": _temperatures(root),
        "jetson_release": _first_line(root / "etc/nv_tegra_release"),
        "power_mode": _power_mode(root),
    }


def power_mode() -> str | None:
    """Name Jetson's power mode, None on other machines. Modes differ in clocks, and in how many of the GPU's multiprocessors are on."""
    return _power_mode(Path("/"))


def throttled(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool | None:
    """Whether a clock fell by more than 10 % between two states; None when neither clock is told. A hint: governors vary clocks too."""
    known = [(before[name], after[name]) for name in ("cpu_mhz", "gpu_mhz") if before[name] and after[name]]
    return any(now < _THROTTLED_BELOW * then for then, now in known) if known else None


def _cpu_name(root: Path) -> str | None:
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _fastest(files: Any, units_in_a_mhz: float) -> float | None:
    values = [int(text) for text in map(_text, files) if text and text.isdigit()]
    return max(values) / units_in_a_mhz if values else None


def _gpu_mhz(root: Path) -> float | None:
    jetson = [file for file in root.glob("sys/class/devfreq/*/cur_freq") if _GPU_CLOCK.search(file.parent.name)]
    found = _fastest(jetson, 1e6)
    if found is not None or root != Path("/"):
        return found
    text = _nvidia_smi("clocks.sm")
    return float(text) if text and text.isdigit() else None


def _temperatures(root: Path) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name, value = _text(zone / "type"), _text(zone / "temp")
        if name and value and value.lstrip("-").isdigit():
            found[name] = int(value) / 1000
    gpu = _nvidia_smi("temperature.gpu") if root == Path("/") else None
    if gpu and gpu.isdigit():
        found["nvidia-smi"] = float(gpu)
    return found or None


def _power_mode(root: Path) -> str | None:
    """Return the name of Jetson's power mode: nvpmodel keeps its number in one file and the names in another."""
    number = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if number is None:
        return None
    names = _text(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number.group(1)}\s+NAME=(\S+)\s*>", names)
    return name.group(1) if name else f"mode {number.group(1)}"


def _nvidia_smi(field: str) -> str | None:
    """Return one field of the first GPU; None without the tool, as on Jetson, or when it knows no answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.strip()
    return text if text and not text.startswith("[") else None


def _first_line(file: Path) -> str | None:
    text = _text(file)
    return text.splitlines()[0] if text else None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n") or None
    except OSError:
        return None
