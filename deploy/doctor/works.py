"""What works for each family of targets on a machine, and why not."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.doctor.facts import OrtProbe, TrtProbe
from deploy.doctor.of_machine import OLDEST_PYTHON
from deploy.doctor.of_tensorrt import OLDEST_TENSORRT
from deploy.doctor.patient import Patient
from deploy.doctor.record import Works
from deploy.targets.rules import version_fits
from deploy.targets.target import Target

FAMILIES = ("ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx")
_NO_ENGINE = "simulate has no engine"


def works_of(
    patient: Patient | None, version: tuple[int, ...], search: str | None, target: Target | None
) -> tuple[Works, ...]:
    """Return what works for the family of `target`, or for each without one.

    `patient` is None where Python is too old to tell more; `search` is why this machine cannot search.
    """
    if version < OLDEST_PYTHON or patient is None:
        old = f"Python {'.'.join(map(str, version[:2]))} there is too old"
        reasons: Mapping[str, tuple[str | None, str | None]] = dict.fromkeys(FAMILIES, (old, old))
    else:
        reasons = _reasons(patient)
    if target is not None and target.lowering == "simulate":
        reasons = {target.family: (_NO_ENGINE, _NO_ENGINE)}
    wanted = reasons if target is None else (target.family,)
    return tuple(
        Works(family=family, search=search, build=reasons[family][0], measure=reasons[family][1]) for family in wanted
    )


def _reasons(patient: Patient) -> Mapping[str, tuple[str | None, str | None]]:
    """Return why engines of each family cannot be built, and why they cannot be timed."""
    probes = patient.facts.probes
    numpy = None if probes.numpy.version is not None else "numpy is missing"
    gpu = None if probes.cuda.trouble is None and probes.cuda.gpus else "no GPU that works"
    ort = {
        "ort-cpu": numpy or _session(probes.ort_cpu),
        "ort-cuda": numpy or _provider(gpu, probes.ort_cuda, "CUDAExecutionProvider"),
        "ort-tensorrt": numpy or _provider(gpu, probes.ort_tensorrt, "TensorrtExecutionProvider"),
    }
    tensorrt = (
        numpy
        or _builder(probes.tensorrt, "TensorRT")
        or _version(patient, probes.tensorrt)
        or _capability(patient, "tensorrt")
    )
    rtx = numpy or _builder(probes.tensorrt_rtx, "TensorRT-RTX")
    return {
        **{family: (reason, reason) for family, reason in ort.items()},
        "tensorrt": (tensorrt or gpu, tensorrt or gpu),
        # a plan of TensorRT-RTX is built for a GPU that need not be here
        "tensorrt-rtx": (rtx, rtx or gpu or _capability(patient, "tensorrt-rtx")),
    }


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


def _version(patient: Patient, probe: TrtProbe) -> str | None:
    """On this machine plans are only built by the version that the target names; a device builds with what it has."""
    version = probe.version or "unknown"
    if version == "unknown":
        return None
    if not version_fits(version, f">={OLDEST_TENSORRT}"):
        return f"TensorRT {version} is older than {OLDEST_TENSORRT}"
    target = patient.target
    if not patient.here or target is None or target.family != "tensorrt" or target.version is None:
        return None
    wanted = target.version.split(".")
    if version.split(".")[: len(wanted)] == wanted:
        return None
    return f"{target.name} is TensorRT {target.version}, and {version} is here: build on the device"


def _capability(patient: Patient, family: str) -> str | None:
    gpus, target = patient.facts.probes.cuda.gpus, patient.target
    if target is None or target.family != family or not target.compute_capabilities or not gpus:
        return None
    if gpus[0].sm in target.compute_capabilities:
        return None
    return f"the GPU is {gpus[0].sm}, and {target.name} is for {', '.join(target.compute_capabilities)}"
