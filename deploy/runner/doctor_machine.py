"""What a machine is and what is installed on it, read from its files; no library is loaded."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.runner.doctor_gpus import bounded
from deploy.runner.state import jetson_gpu_mhz, jetson_release, power_mode

_CONCERNED = re.compile(
    r"^(numpy|onnxruntime.*|tensorrt.*|python3-libnvinfer.*|cuda-python|cuda-bindings|pycuda|nvidia-.*)$"
)
_NVIDIA_VENDOR = "0x10de"
_MOST_PACKAGES = 200
_SYSTEM_PACKAGES = ("usr/lib/python3/dist-packages", "usr/lib/python3.*/dist-packages")
"""Where apt's packages for Python are, as python3-libnvinfer."""
_TOOLS = {
    "trtexec": ("usr/src/tensorrt/bin/trtexec",),
    "tensorrt_rtx": (),
    "nvidia-smi": (),
    "jetson_clocks": ("usr/bin/jetson_clocks",),
    "nvpmodel": ("usr/sbin/nvpmodel",),
}
_DRIVER_VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")


def machine_facts(root: Path) -> dict[str, Any]:
    """Return what files tell of Python, board, packages, tools and free room; `root` is where the files of the system
    are.
    """
    return {
        "system": bounded(platform.system()),
        "architecture": bounded(platform.machine()),
        "python": _python_facts(),
        "jetson": _jetson_facts(root),
        "nvidia_devices": sum(_content(file) == _NVIDIA_VENDOR for file in root.glob("sys/bus/pci/devices/*/vendor")),
        "driver": _driver_version_text(root),
        "packages": _packages(root)[:_MOST_PACKAGES],
        "tools": {name: _tool(name, root, places) for name, places in _TOOLS.items()},
        "room": _room(root),
    }


def _python_facts() -> dict[str, Any]:
    in_venv = sys.prefix != sys.base_prefix
    settings = _content(Path(sys.prefix) / "pyvenv.cfg") if in_venv else ""
    return {
        "executable": bounded(sys.executable),
        "prefix": bounded(sys.prefix),
        "venv": in_venv,
        "sees_system": not in_venv
        or bool(re.search(r"include-system-site-packages\s*=\s*true", settings, re.IGNORECASE)),
        "managed": not in_venv and (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").is_file(),
        "pip": importlib.util.find_spec("pip") is not None,
    }


def _jetson_facts(root: Path) -> dict[str, Any] | None:
    """Return release, board, power mode and the clocks of the GPU in MHz; None where this is no Jetson."""
    release, mode, board = jetson_release(root), power_mode(root), _content(root / "proc/device-tree/model")
    if release is None and "jetson" not in board.lower():
        return None
    return {
        "release": bounded(release) if release else None,
        "board": bounded(board) or None,
        "power_mode": bounded(mode) if mode else None,
        **{f"{name}_mhz": mhz for name, mhz in jetson_gpu_mhz(root).items()},
    }


def _driver_version_text(root: Path) -> str | None:
    found = _DRIVER_VERSION.search(_content(root / "proc/driver/nvidia/version"))
    return found.group(1) if found else None


def _packages(root: Path) -> list[dict[str, Any]]:
    """Return the distributions that concern us: those that this Python imports, and those of the system that it does
    not see.
    """
    seen = list(dict.fromkeys(os.path.realpath(place) for place in sys.path if Path(place).is_dir()))
    others = {os.path.realpath(place) for pattern in _SYSTEM_PACKAGES for place in root.glob(pattern)} - set(seen)
    return [*_distributions(seen, importable=True), *_distributions(sorted(others), importable=False)]


def _distributions(places: Iterable[str], *, importable: bool) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for place in places:
        for found in metadata.distributions(path=[place]):
            name = re.sub(r"[-_.]+", "-", str(found.metadata["Name"] or "")).lower()
            if _CONCERNED.match(name):
                version = bounded(found.version)
                rows.setdefault(
                    (name, version, place),
                    {"name": bounded(name), "version": version, "place": bounded(place), "importable": importable},
                )
    return [rows[key] for key in sorted(rows)]


def _tool(name: str, root: Path, places: Iterable[str]) -> str | None:
    found = shutil.which(name) or next((str(root / place) for place in places if (root / place).is_file()), None)
    return bounded(found) if found else None


def _room(root: Path) -> dict[str, Any]:
    """Return free and total memory, and the free disk where measuring keeps its files, in bytes."""
    lines = _content(root / "proc/meminfo").splitlines()
    memory = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in lines
        if len(line.split()) == 3 and line.split()[1].isdigit()
    }
    place = Path.home() / ".cache"
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        free = None
    return {
        "memory_free": memory.get("MemAvailable"),
        "memory_total": memory.get("MemTotal"),
        "disk_free": free,
        "disk": bounded(place),
        "writable": os.access(place, os.W_OK),
    }


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n")
    except OSError:
        return ""
