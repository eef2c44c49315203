"""Findings about Python, numpy, the board, and free room."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deploy.doctor.patient import Patient, found
from deploy.doctor.record import Finding

OLDEST_PYTHON = (3, 10)
_PINNED = 0.99
_LITTLE_MEMORY, _LITTLE_DISK = 2e9, 1e9
_RELEASE = re.compile(r"R(\d+)\D+REVISION: (\d+)(?:\.(\d+))?")
_JETPACKS = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7"}
"""JetPack by the number of the L4T release (developer.nvidia.com/embedded/jetpack-archive)."""
_OLDEST_L4T = (36, 4)
"""JetPack 6.1, the first with TensorRT 10.3."""


def python_finding(version: tuple[int, ...], address: str) -> Finding:
    """Say whether the Python is new enough for what runs on a device."""
    text = ".".join(map(str, version))
    if version >= OLDEST_PYTHON:
        return found("Python", "ok", text)
    host = address.partition("?")[0] or "ssh://user@host"
    return found(
        "Python",
        "problem",
        f"{text}, and 3.10 or later is needed. Ubuntu has it from 22.04 on, a Jetson from JetPack 6 on, and TensorRT "
        "of an older JetPack is too old besides: upgrade the system, or name another Python in the address",
        f"smpq doctor --device '{host}?python=/path/to/python3'",
    )


def machine_findings(patient: Patient) -> Iterator[Finding]:
    """Yield what is found of Python's environment, numpy, the board and free room."""
    python = patient.facts.python
    kind = "a virtual environment" if python.venv else "the system's" if python.sees_system else "its own"
    seen = " that does not see the system's packages" if python.venv and not python.sees_system else ""
    yield found("Python", "ok", f"{python.executable}, {kind}{seen}")
    yield _numpy(patient)
    probe = patient.facts.probes.machine
    if probe.name is not None:
        yield found("machine", "ok", probe.name)
    else:
        yield found(
            "machine", "problem", f"it cannot be named, and no measurement would be kept: {probe.trouble}", "nvidia-smi"
        )
    yield from _jetson(patient)
    yield from _room(patient)


def _numpy(patient: Patient) -> Finding:
    probe = patient.facts.probes.numpy
    if probe.trouble is not None:
        return found(
            "numpy", "problem", f"it does not load: {probe.trouble}", *patient.install("--force-reinstall", "numpy")
        )
    if probe.version is None:
        return found(
            "numpy", "problem", "there is none, and engines are not timed without it", *patient.install("numpy")
        )
    return found("numpy", "ok", probe.version)


def _jetson(patient: Patient) -> Iterator[Finding]:
    jetson = patient.facts.jetson
    if jetson is None:
        return
    match = _RELEASE.search(jetson.release or "")
    if match is None:
        yield found("Jetson", "note", f"{jetson.board or 'a Jetson'}; it does not tell its release of L4T")
    else:
        number = tuple(int(part) for part in match.groups(default="0"))
        name = f"L4T {'.'.join(map(str, number))}, JetPack {_JETPACKS.get(number[0], 'unknown')}"
        if number[:2] < _OLDEST_L4T:
            text = f"{name}: its TensorRT is older than 10.3. Install JetPack 6.1 or later, with NVIDIA's SDK Manager"
            yield found("Jetson", "problem", text, "sdkmanager")
        else:
            yield found("Jetson", "ok", f"{jetson.board or 'Jetson'}, {name}")
    if jetson.power_mode is None:
        yield found("power mode", "note", "it is not told: figures of two modes would be mixed", "sudo nvpmodel -q")
    else:
        yield found(
            "power mode",
            "ok",
            f"{jetson.power_mode} (nvpmodel -m NUMBER chooses another; figures of two modes are kept apart)",
        )
    yield _clocks(jetson.cur_mhz, jetson.min_mhz, jetson.max_mhz)


def _clocks(now: float | None, least: float | None, most: float | None) -> Finding:
    """Clocks are pinned where the GPU may go no lower than it goes at most, as jetson_clocks sets it."""
    if most is None or (now is None and least is None):
        return found(
            "clocks", "note", "the GPU does not tell its clocks: pin them before measuring", "sudo jetson_clocks"
        )
    lowest = least if least is not None else now
    assert lowest is not None
    shown = f"{now if now is not None else lowest:.0f} of {most:.0f} MHz"
    if lowest >= _PINNED * most and (now is None or now >= _PINNED * most):
        return found("clocks", "ok", f"the GPU's are pinned at {shown}")
    range_ = f", and may go down to {least:.0f}" if least is not None else ""
    return found(
        "clocks", "note", f"the GPU is at {shown}{range_}: pin its clocks before measuring", "sudo jetson_clocks"
    )


def _room(patient: Patient) -> Iterator[Finding]:
    room = patient.facts.room
    if room.memory_free is not None and room.memory_total is not None:
        shown = f"{room.memory_free / 1e9:.1f} of {room.memory_total / 1e9:.1f} GB free"
        if room.memory_free < _LITTLE_MEMORY:
            yield found(
                "memory",
                "note",
                f"{shown}: a build may need more; end other programs, as the desktop",
                "sudo systemctl isolate multi-user.target",
            )
        else:
            yield found("memory", "ok", shown)
    if not room.writable:
        yield found(
            "disk",
            "problem",
            f"{room.disk} cannot be written",
            f'sudo chown -R "$USER" {room.disk if room.disk.endswith(".cache") else "~"}',
        )
    elif room.disk_free is not None and room.disk_free < _LITTLE_DISK:
        yield found(
            "disk",
            "problem",
            f"{room.disk_free / 1e9:.2f} GB free in {room.disk}: models and plans need more",
            "du -sh ~/.cache/*",
        )
    elif room.disk_free is not None:
        yield found("disk", "ok", f"{room.disk_free / 1e9:.1f} GB free in {room.disk}")
