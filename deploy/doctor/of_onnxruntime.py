"""Findings about ONNX Runtime and its providers."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.doctor.facts import OrtProbe
from deploy.doctor.patient import Patient, found
from deploy.doctor.record import Finding
from deploy.runner.ort_gpu import ORT_CUDA, ORT_TENSORRT, package_with_library

_TITLE = "ONNX Runtime"
_PACKAGE, _GPU = "onnxruntime", "onnxruntime-gpu"
_CUDA_13_SINCE = "1.27"
"""onnxruntime-gpu 1.26.0 on the package index asks for libraries of CUDA 12, and 1.28.0 for those of CUDA 13."""
_DISTRIBUTIONS = r"onnxruntime(-gpu|-training|-directml|-openvino|-azure|-migraphx)?"


def onnxruntime_findings(patient: Patient) -> Iterator[Finding]:
    """Yield what is found of the packages, the CPU, and the two providers for NVIDIA GPUs."""
    packages = [package for package in patient.facts.packages_named(_DISTRIBUTIONS) if package.importable]
    names = list(dict.fromkeys(package.name for package in packages))
    if len(names) > 1:
        wanted = _GPU if _GPU in names else names[0]
        text = f"{' and '.join(names)} are both installed and write the same files: keep one"
        yield found(_TITLE, "problem", text, *patient.uninstall(*names), *patient.install(wanted))
    probes = patient.facts.probes
    yield _cpu(patient, probes.ort_cpu, installed=bool(packages))
    if probes.ort_cpu.version is not None:
        yield _provider(patient, ORT_CUDA, probes.ort_cuda)
        yield _provider(patient, ORT_TENSORRT, probes.ort_tensorrt)


def _cpu(patient: Patient, probe: OrtProbe, *, installed: bool) -> Finding:
    if probe.version is None and probe.trouble is None:
        needed = patient.here or patient.needs(_PACKAGE)
        if installed:
            text = "its package is there and its module is not: install it again"
            return found(_TITLE, "problem", text, *patient.install("--force-reinstall", _PACKAGE))
        mends = patient.install(_PACKAGE) if needed or patient.target is None else ()
        return found(_TITLE, "problem" if needed else "note", "not installed", *mends)
    if not probe.ran:
        text = f"a small model does not run on the CPU ({probe.trouble or probe.said or 'no reason given'})"
        return found(_TITLE, "problem", text, *patient.install("--force-reinstall", _PACKAGE))
    return found(
        _TITLE, "ok", f"{probe.version}: a small model runs on the CPU; providers: {', '.join(probe.available)}"
    )


def _provider(patient: Patient, provider: str, probe: OrtProbe) -> Finding:
    driver, needed = patient.facts.probes.cuda, patient.needs_provider(provider) and patient.may_have_gpu
    if probe.ran:
        return found(_TITLE, "ok", f"a small model runs on {provider}")
    if provider not in probe.available:
        if probe.trouble is not None:
            return found(_TITLE, "problem" if needed else "note", f"{provider} cannot be asked for: {probe.trouble}")
        return _not_built_in(patient, provider, needed=needed)
    if driver.trouble is not None:
        text = f"{provider} is there, and no GPU that works"
        return found(_TITLE, "problem" if needed else "note", text)
    reason = probe.trouble or probe.refused or probe.said or "no reason given"
    newer = _newer_than_driver(patient, probe)
    if newer is not None:
        text = (
            f"{provider} is made for CUDA {probe.cuda_version}, and the driver is for CUDA {newer}: "
            "take an older one, or update the driver"
        )
        return found(_TITLE, "problem", text, *patient.install(_gpu_package(patient)))
    what = "does not run a small model" if probe.kept else "is not kept by a session, which falls back to the CPU"
    return found(_TITLE, "problem", f"{provider} {what} ({reason})", *_libraries(patient, probe, reason))


def _not_built_in(patient: Patient, provider: str, *, needed: bool) -> Finding:
    text = f"this build is without {provider}"
    if not needed:
        return found(_TITLE, "note", text)
    if patient.facts.architecture not in ("x86_64", "AMD64"):
        text = (
            f"{text}, and the package index has no {_GPU} for {patient.facts.architecture}: take a target of TensorRT"
        )
        return found(_TITLE, "problem", text, "smpq targets")
    return found(_TITLE, "problem", text, *patient.uninstall(_PACKAGE), *patient.install(_gpu_package(patient)))


def _newer_than_driver(patient: Patient, probe: OrtProbe) -> str | None:
    """Return the CUDA version of the driver where ONNX Runtime is made for a newer CUDA, None where it is not."""
    driver, made_for = patient.facts.probes.cuda.cuda_version, (probe.cuda_version or "").split(".")[0]
    if driver is None or not made_for.isdigit() or int(made_for) <= driver[0]:
        return None
    return f"{driver[0]}.{driver[1]}"


def _gpu_package(patient: Patient) -> str:
    """Return the newest package whose CUDA the driver serves."""
    driver = patient.facts.probes.cuda.cuda_version
    return f"{_GPU}[cuda,cudnn]<{_CUDA_13_SINCE}" if driver is not None and driver[0] == 12 else f"{_GPU}[cuda,cudnn]"


def _libraries(patient: Patient, probe: OrtProbe, reason: str) -> tuple[str, ...]:
    """Return what installs the libraries that a provider links, by the version that ONNX Runtime was built for."""
    return patient.install(package_with_library(reason, probe.version or "", probe.cuda_version))
