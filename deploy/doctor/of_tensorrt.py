"""Findings about TensorRT and TensorRT-RTX."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.doctor.facts import PackageFacts, TrtProbe
from deploy.doctor.patient import Patient, found
from deploy.doctor.record import Finding, State
from deploy.targets.rules import version_fits

OLDEST_TENSORRT = "10.3"
_NEWEST_CUDA = 13
_CUDA_OF_PACKAGE = re.compile(r"-cu(\d+)")
_OLD_DRIVER = re.compile(r"insufficient|error: 35\b|failure: 35\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Module:
    """One of the two: how it is called, installed, and what its packages are named."""

    family: str
    title: str
    package: str
    pattern: str
    tool: str
    oldest: str


_MODULES = (
    _Module(
        "tensorrt",
        "TensorRT",
        "tensorrt",
        r"tensorrt(-cu\d+)?(-bindings|-libs)?|python3-libnvinfer.*",
        "trtexec",
        OLDEST_TENSORRT,
    ),
    _Module("tensorrt-rtx", "TensorRT-RTX", "tensorrt-rtx", r"tensorrt-rtx.*", "tensorrt_rtx", "1.0"),
)


def tensorrt_findings(patient: Patient) -> Iterator[Finding]:
    """Yield what is found of both modules, and of their programs for the command line."""
    for module, probe in zip(_MODULES, (patient.facts.probes.tensorrt, patient.facts.probes.tensorrt_rtx), strict=True):
        yield _module(patient, module, probe)
        tool = patient.facts.tools.get(module.tool)
        if tool is not None:
            yield found(module.title, "ok", f"{module.tool} is {tool}")
    lean = [
        package.version
        for package in patient.facts.packages_named(r"tensorrt-(lean|dispatch)(-cu\d+)?")
        if package.importable
    ]
    if lean and patient.facts.probes.tensorrt.version is None:
        yield found("TensorRT", "note", f"tensorrt-lean {lean[0]} is there: it runs plans, and builds none")


def _module(patient: Patient, module: _Module, probe: TrtProbe) -> Finding:
    packages = patient.facts.packages_named(module.pattern)
    seen = [package for package in packages if package.importable]
    if probe.version is None and (probe.trouble is not None or seen):
        return _does_not_load(patient, module, probe, seen)
    if probe.version is None:
        return _missing(patient, module, packages)
    where = f"{probe.version} ({probe.place})"
    if probe.version != "unknown" and not version_fits(probe.version, f">={module.oldest}"):
        mends = ("sdkmanager",) if patient.is_jetson else _install(patient, module)
        return found(module.title, "problem", f"{where}: {module.oldest} or later is needed", *mends)
    mixed = sorted({package.version.split(".post")[0] for package in seen})
    if len(mixed) > 1:
        text = f"its parts have several versions ({', '.join(f'{p.name} {p.version}' for p in seen)}): take them away and install one"
        return found(
            module.title,
            "problem",
            text,
            *patient.uninstall(*(package.name for package in seen)),
            *_install(patient, module),
        )
    return _loaded(patient, module, probe, seen, where)


def _loaded(patient: Patient, module: _Module, probe: TrtProbe, seen: list[PackageFacts], where: str) -> Finding:
    """Say whether a module that loads can build, with the driver that is there."""
    driver = patient.facts.probes.cuda.cuda_version
    built_for = probe.cuda_major or next(
        (int(m[1]) for m in map(_CUDA_OF_PACKAGE.search, (p.name for p in seen)) if m), None
    )
    if driver is not None and built_for is not None and built_for > driver[0]:
        text = f"{where} is made for CUDA {built_for}, and the driver is for CUDA {driver[0]}.{driver[1]}: take the one for CUDA {driver[0]}"
        return found(
            module.title,
            "problem",
            text,
            *patient.uninstall(*(package.name for package in seen)),
            *_install(patient, module),
        )
    if probe.builder:
        about = f", for CUDA {built_for}" if built_for is not None else ""
        return found(module.title, "ok", f"{where}{about}: it makes a builder{_other_version(patient, module, probe)}")
    reason = probe.said or probe.trouble or "no reason given"
    if driver is None or _OLD_DRIVER.search(reason):
        state: State = "problem" if patient.may_have_gpu else "note"
        return found(
            module.title,
            state,
            f"{where} makes no builder without a driver that serves it ({reason})",
            *_for_driver(patient, module),
        )
    return found(
        module.title, "problem", f"{where} loads and makes no builder ({reason})", *_again(patient, module, seen)
    )


def _for_driver(patient: Patient, module: _Module) -> tuple[str, ...]:
    """Return how to install a version that the driver serves; nothing where there is no driver, of which another
    finding tells.
    """
    return _install(patient, module) if patient.facts.probes.cuda.cuda_version is not None else ()


def _other_version(patient: Patient, module: _Module, probe: TrtProbe) -> str:
    """Say that the version is another than the target's: only on this machine it has to be the same, as `works`
    tells.
    """
    target = patient.target
    if target is None or target.family != module.family or target.version is None or probe.version is None:
        return ""
    parts = target.version.split(".")
    if probe.version.split(".")[: len(parts)] == parts:
        return ""
    return f". {target.name} offers the formats of {target.version}; the engine is built with what is there"


def _missing(patient: Patient, module: _Module, packages: list[PackageFacts]) -> Finding:
    needed = patient.needs(module.family) or (module.family == "tensorrt" and patient.needs("ort-tensorrt"))
    state: State = "problem" if needed and (patient.may_have_gpu or module.family == "tensorrt-rtx") else "note"
    if not packages:
        mends = _install(patient, module) if state == "problem" or patient.may_have_gpu else ()
        return found(module.title, state, "not installed", *mends)
    package, python = packages[0], patient.facts.python
    text = f"{package.name} {package.version} is in {package.place}, which this Python does not see"
    if python.venv:
        config = shlex.quote(f"{python.prefix}/pyvenv.cfg")
        mend = f"sed -i 's/include-system-site-packages = false/include-system-site-packages = true/' {config}"
        return found(module.title, state, f"{text}: let the virtual environment see the system's packages", mend)
    return found(module.title, state, f"{text}: use the system's", patient.with_python("/usr/bin/python3"))


def _does_not_load(patient: Patient, module: _Module, probe: TrtProbe, seen: list[PackageFacts]) -> Finding:
    names = ", ".join(f"{package.name} {package.version}" for package in seen) or "it"
    text = (
        f"{names} is installed, and does not load: {probe.trouble or probe.said or 'no module of this name is in it'}"
    )
    return found(module.title, "problem", text, *_again(patient, module, seen))


def _again(patient: Patient, module: _Module, seen: list[PackageFacts]) -> tuple[str, ...]:
    """Return how to install a module again whose libraries are missing or damaged."""
    by_pip = [package.name for package in seen if "dist-packages" not in package.place or "/local/" in package.place]
    removed = patient.uninstall(*by_pip) if by_pip else ()
    if patient.is_jetson and module.family == "tensorrt":
        return (*removed, "sudo apt install --reinstall libnvinfer10 python3-libnvinfer", *_seeing_system(patient))
    return (*removed, *_install(patient, module))


def _seeing_system(patient: Patient) -> tuple[str, ...]:
    python = patient.facts.python
    if not python.venv or python.sees_system:
        return ()
    config = shlex.quote(f"{python.prefix}/pyvenv.cfg")
    return (f"sed -i 's/include-system-site-packages = false/include-system-site-packages = true/' {config}",)


def _install(patient: Patient, module: _Module) -> tuple[str, ...]:
    if module.family == "tensorrt-rtx":
        served = patient.facts.architecture in ("x86_64", "AMD64") and not patient.is_jetson
        return patient.install("tensorrt-rtx") if served else ()
    if patient.is_jetson:
        return ("sudo apt install python3-libnvinfer", *_seeing_system(patient))
    driver = patient.facts.probes.cuda.cuda_version
    # without a driver the plan would never run: nothing to install
    return patient.install(f"tensorrt-cu{min(driver[0], _NEWEST_CUDA)}") if driver is not None else ()
