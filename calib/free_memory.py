"""How much memory a process may still take."""

from __future__ import annotations

import math
from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


def free_bytes() -> float:
    """Return how much memory is free on the machine, or in the container where that has less; infinity where the system
    does not say.
    """
    return min(_of_the_system(), _of_the_container())


def _of_the_system() -> float:
    try:
        lines = _SYSTEM.read_text(encoding="ascii").splitlines()
        return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, IndexError, StopIteration):
        return math.inf


def _of_the_container() -> float:
    """What files are cached with is free too: the system takes it back."""
    try:
        names = ("memory.max", "memory.current", "memory.stat")
        most, used, told = ((_CONTAINER / name).read_text(encoding="ascii") for name in names)
        cached = next(float(line.split()[1]) for line in told.splitlines() if line.startswith("inactive_file "))
        return max(0.0, float(most) - float(used) + cached)
    except (OSError, ValueError, IndexError, StopIteration):  # "max", or no such file
        return math.inf
