"""Findings about TensorRT and TensorRT-RTX."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from calib.formats.format import Format
from deploy.doctor.facts import PackageFacts, Probes, TrtProbe
from deploy.doctor.patient import Patient, found
from deploy.doctor.record import Finding, State
from deploy.runner.ort_gpu import ORT_TENSORRT
from deploy.targets.families import FAMILIES, Family
from deploy.targets.rules import Capability, version_fits
from deploy.targets.target import Target, capability

_NEWEST_CUDA = 13
_CUDA_OF_PACKAGE = re.compile(r"-cu(\d+)")
_OLD_DRIVER = re.compile(r"insufficient|error: 35\b|failure: 35\b", re.IGNORECASE)
_ARCHIVE = "TensorRT-10.7.0.23"
_PLACE = "https://developer.nvidia.com/downloads/compute/machine-learning/tensorrt/10.7.0/tars"
_INT8_COMMANDS = (
    f"curl -LO {_PLACE}/{_ARCHIVE}.l4t.aarch64-gnu.cuda-12.6.tar.gz",
    f"tar xzf {_ARCHIVE}.l4t.aarch64-gnu.cuda-12.6.tar.gz",
    f"echo $PWD/{_ARCHIVE}/lib | sudo tee /etc/ld.so.conf.d/tensorrt-10.7.conf && sudo ldconfig",
)
_INT8 = Format.from_text("w8a8")


@dataclass(frozen=True)
class TrtModule:
    """One of the two: how it is called and installed, and what its packages are named.

    `provider` is that of ONNX Runtime which loads it too. `apt`: on a Jetson it comes by apt, and elsewhere there is a
    package for each CUDA; otherwise there is one package, for x86. `needs_gpu`: it builds on the GPU alone.
    """

    runtime: str
    title: str
    pattern: str
    tool: str
    probe: Callable[[Probes], TrtProbe]
    provider: str | None
    apt: bool
    needs_gpu: bool

    @property
    def family(self) -> Family:
        """The table of its targets."""
        return next(family for family in FAMILIES.values() if family.target.runtime == self.runtime)

    @property
    def oldest(self) -> str:
        """The first version that will do."""
        return self.family.oldest or "0"


TRT_MODULES = {
    module.runtime: module
    for module in (
        TrtModule(
            "tensorrt",
            "TensorRT",
            r"tensorrt(-cu\d+)?(-bindings|-libs)?|python3-libnvinfer.*",
            "trtexec",
            lambda probes: probes.tensorrt,
            ORT_TENSORRT,
            apt=True,
            needs_gpu=True,
        ),
        TrtModule(
            "tensorrt-rtx",
            "TensorRT-RTX",
            r"tensorrt-rtx.*",
            "tensorrt_rtx",
            lambda probes: probes.tensorrt_rtx,
            None,
            apt=False,
            needs_gpu=False,
        ),
    )
}


def tensorrt_findings(patient: Patient) -> Iterator[Finding]:
    """Yield what is found of both modules, and of their programs for the command line."""
    for module in TRT_MODULES.values():
        probe = module.probe(patient.facts.probes)
        yield _module(patient, module, probe)
        yield from _int8(patient, module, probe)
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


def _module(patient: Patient, module: TrtModule, probe: TrtProbe) -> Finding:
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
        text = (
            f"its parts have several versions ({', '.join(f'{p.name} {p.version}' for p in seen)}): "
            "take them away and install one"
        )
        return found(
            module.title,
            "problem",
            text,
            *patient.uninstall(*(package.name for package in seen)),
            *_install(patient, module),
        )
    return _loaded(patient, module, probe, seen, where)


def _loaded(patient: Patient, module: TrtModule, probe: TrtProbe, seen: list[PackageFacts], where: str) -> Finding:
    """Say whether a module that loads can build, with the driver that is there."""
    driver = patient.facts.probes.cuda.cuda_version
    built_for = probe.cuda_major or next(
        (int(m[1]) for m in map(_CUDA_OF_PACKAGE.search, (p.name for p in seen)) if m), None
    )
    if driver is not None and built_for is not None and built_for > driver[0]:
        text = (
            f"{where} is made for CUDA {built_for}, and the driver is for CUDA {driver[0]}.{driver[1]}: "
            f"take the one for CUDA {driver[0]}"
        )
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


def _for_driver(patient: Patient, module: TrtModule) -> tuple[str, ...]:
    """Return how to install a version that the driver serves; nothing where there is no driver, of which another
    finding tells.
    """
    return _install(patient, module) if patient.facts.probes.cuda.cuda_version is not None else ()


def _other_version(patient: Patient, module: TrtModule, probe: TrtProbe) -> str:
    """Say that the version is another than the target's: only on this machine it has to be the same, as `works`
    tells.
    """
    target = patient.target
    if target is None or target.runtime != module.runtime or target.version is None or probe.version is None:
        return ""
    parts = target.version.split(".")
    if probe.version.split(".")[: len(parts)] == parts:
        return ""
    return f". {target.name} offers the formats of {target.version}; the engine is built with what is there"


def _int8(patient: Patient, module: TrtModule, probe: TrtProbe) -> Iterator[Finding]:
    """Yield what the table says about INT8 convolutions on the GPU that is there, unless they are native.

    It is a problem where the target is a version that has them.
    """
    gpus, other = patient.facts.probes.cuda.gpus, patient.target is not None and not patient.needs(module.runtime)
    if not probe.builder or not module.apt or not patient.is_jetson or not gpus or other:
        return
    here = replace(module.family.target, version=probe.version, compute_capabilities=(gpus[0].sm,))
    answer, target = _int8_convolution(here), patient.target
    if _int8_convolution(replace(here, version=module.family.versions[-1])).status == answer.status:
        return
    state: State = "problem" if target is not None and _int8_convolution(target).status == "native" else "note"
    wheel = f"{_ARCHIVE}/python/tensorrt-10.7.0-cp310-none-linux_aarch64.whl"
    yield found(module.title, state, f"{probe.version}: {answer.note}", *_INT8_COMMANDS, *patient.install(wheel))


def _int8_convolution(target: Target) -> Capability:
    return capability(target, "conv2d", _INT8, 64 * 9, 64)


def _missing(patient: Patient, module: TrtModule, packages: list[PackageFacts]) -> Finding:
    needed = patient.needs(module.runtime) or (module.provider is not None and patient.needs_provider(module.provider))
    state: State = "problem" if needed and (patient.may_have_gpu or not module.needs_gpu) else "note"
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


def _does_not_load(patient: Patient, module: TrtModule, probe: TrtProbe, seen: list[PackageFacts]) -> Finding:
    names = ", ".join(f"{package.name} {package.version}" for package in seen) or "it"
    text = (
        f"{names} is installed, and does not load: {probe.trouble or probe.said or 'no module of this name is in it'}"
    )
    return found(module.title, "problem", text, *_again(patient, module, seen))


def _again(patient: Patient, module: TrtModule, seen: list[PackageFacts]) -> tuple[str, ...]:
    """Return how to install a module again whose libraries are missing or damaged."""
    by_pip = [package.name for package in seen if "dist-packages" not in package.place or "/local/" in package.place]
    removed = patient.uninstall(*by_pip) if by_pip else ()
    if patient.is_jetson and module.apt:
        return (*removed, "sudo apt install --reinstall libnvinfer10 python3-libnvinfer", *_seeing_system(patient))
    return (*removed, *_install(patient, module))


def _seeing_system(patient: Patient) -> tuple[str, ...]:
    python = patient.facts.python
    if not python.venv or python.sees_system:
        return ()
    config = shlex.quote(f"{python.prefix}/pyvenv.cfg")
    return (f"sed -i 's/include-system-site-packages = false/include-system-site-packages = true/' {config}",)


def _install(patient: Patient, module: TrtModule) -> tuple[str, ...]:
    if not module.apt:
        served = patient.facts.architecture in ("x86_64", "AMD64") and not patient.is_jetson
        return patient.install(module.runtime) if served else ()
    if patient.is_jetson:
        return ("sudo apt install python3-libnvinfer", *_seeing_system(patient))
    driver = patient.facts.probes.cuda.cuda_version
    # without a driver the plan would never run: nothing to install
    return patient.install(f"{module.runtime}-cu{min(driver[0], _NEWEST_CUDA)}") if driver is not None else ()
