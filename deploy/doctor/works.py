"""What works for each family of targets on a machine, and why not."""

from __future__ import annotations

from deploy.doctor.facts import OrtProbe, TrtProbe
from deploy.doctor.of_machine import OLDEST_PYTHON
from deploy.doctor.of_tensorrt import TRT_MODULES, TrtModule
from deploy.doctor.patient import Patient
from deploy.doctor.record import Works
from deploy.runner.ort_gpu import ORT_CPU, ORT_CUDA, ORT_TENSORRT
from deploy.targets.families import timed_families
from deploy.targets.rules import version_fits
from deploy.targets.target import Target

Reasons = tuple[str | None, str | None]
"""Why engines cannot be built, and why they cannot be timed; None where they can."""


def works_of(
    patient: Patient | None, version: tuple[int, ...], search: str | None, target: Target | None
) -> tuple[Works, ...]:
    """Return what works for the family of `target`, or for each without one.

    `patient` is None where Python is too old to tell more; `search` is why this machine cannot search.
    """
    found = []
    for each in timed_families() if target is None else (target,):
        build, measure = _reasons(patient, version, each)
        found.append(Works(family=each.family, search=search, build=build, measure=measure))
    return tuple(found)


def _reasons(patient: Patient | None, version: tuple[int, ...], target: Target) -> Reasons:
    if not target.timed:
        return (f"{target.name} has no engine",) * 2
    if version < OLDEST_PYTHON or patient is None:
        return (f"Python {'.'.join(map(str, version[:2]))} there is too old",) * 2
    if patient.facts.probes.numpy.version is None:
        return ("numpy is missing",) * 2
    if target.providers:
        return (_no_session(patient, target, target.providers[0]),) * 2
    module = TRT_MODULES.get(target.runtime)
    if module is None:
        return (f"smpq doctor does not look for {target.runtime}",) * 2
    return _no_plan(patient, target, module)


def _no_gpu(patient: Patient) -> str | None:
    cuda = patient.facts.probes.cuda
    return None if cuda.trouble is None and cuda.gpus else "no GPU that works"


def _no_session(patient: Patient, target: Target, provider: str) -> str | None:
    probes = patient.facts.probes
    probe = {ORT_CPU: probes.ort_cpu, ORT_CUDA: probes.ort_cuda, ORT_TENSORRT: probes.ort_tensorrt}[provider]
    return _provider(_no_gpu(patient), probe, provider) if target.needs_gpu else _session(probe)


def _no_plan(patient: Patient, target: Target, module: TrtModule) -> Reasons:
    probe, gpu = module.probe(patient.facts.probes), _no_gpu(patient)
    builder = _builder(probe, module.title) or _version(patient, target, module, probe)
    capability = _capability(patient)
    if module.needs_gpu:
        return (builder or capability or gpu,) * 2
    return builder, builder or gpu or capability  # a plan is built for a GPU that need not be there


def _session(probe: OrtProbe) -> str | None:
    if probe.ran:
        return None
    return (
        "ONNX Runtime runs no model"
        if probe.version is not None or probe.trouble is not None
        else "ONNX Runtime is not installed"
    )


def _provider(gpu: str | None, probe: OrtProbe, provider: str) -> str | None:
    if probe.ran:
        return None
    if probe.version is None:
        return _session(probe)
    if provider not in probe.available:
        return f"ONNX Runtime is without {provider}"
    return gpu or f"{provider} does not work"


def _builder(probe: TrtProbe, title: str) -> str | None:
    if probe.builder:
        return None
    if probe.version is not None:
        return f"{title} makes no builder"
    return f"{title} does not load" if probe.trouble is not None else f"{title} is not installed, or not seen"


def _version(patient: Patient, target: Target, module: TrtModule, probe: TrtProbe) -> str | None:
    """On this machine plans are only built by the version that the target names; a device builds with what it has."""
    version = probe.version or "unknown"
    if version == "unknown":
        return None
    if not version_fits(version, f">={module.oldest}"):
        return f"{module.title} {version} is older than {module.oldest}"
    if not patient.here or target.version is None:
        return None
    wanted = target.version.split(".")
    if version.split(".")[: len(wanted)] == wanted:
        return None
    return f"{target.name} is {module.title} {target.version}, and {version} is here: build on the device"


def _capability(patient: Patient) -> str | None:
    gpus, target = patient.facts.probes.cuda.gpus, patient.target
    if target is None or not target.compute_capabilities or not gpus or gpus[0].sm in target.compute_capabilities:
        return None
    return f"the GPU is {gpus[0].sm}, and {target.name} is for {', '.join(target.compute_capabilities)}"
