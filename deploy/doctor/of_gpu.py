"""Findings about the driver, the GPUs, and what stands in a driver's way."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deploy.doctor.facts import GpuFacts
from deploy.doctor.patient import Patient, found
from deploy.doctor.record import Finding
from deploy.targets.rules import version_fits

_PYTHON_13_DRIVER = 13
"""cuda-python 13 wants a driver that knows CUDA 13, which is 580 and later."""
_CODE = re.compile(r"code (\d+)\)")
_MENDS = {
    34: "unset LD_LIBRARY_PATH",
    100: "nvidia-smi",
    802: "sudo systemctl start nvidia-fabricmanager",
    803: "sudo reboot",
    804: "unset LD_LIBRARY_PATH",
    999: "sudo modprobe nvidia_uvm",
}
"""What to do first about a code of cuInit."""
_INSTALL, _INSTALL_ON_JETSON = "sudo ubuntu-drivers install", "sudo apt install nvidia-l4t-cuda"
_JETSON_GROUPS = 'sudo usermod -aG video,render "$USER"'


def gpu_findings(patient: Patient) -> Iterator[Finding]:
    """Yield what is found of the driver, each GPU, and packages that need a newer driver."""
    yield _driver(patient)
    gpus = patient.facts.probes.cuda.gpus
    for index, gpu in enumerate(gpus):
        yield _gpu(patient, index, gpu)
    limits = patient.facts.probes.machine.limits
    if limits:
        yield found(
            "GPU", "note", f"it is slowed down now: {', '.join(limits)}", "nvidia-smi --query --display=PERFORMANCE"
        )
    if len(gpus) > 1:
        yield found(
            "GPU",
            "note",
            f"there are {len(gpus)}, and engines are timed on the first: CUDA_VISIBLE_DEVICES chooses another",
        )
    yield from _packages(patient)


def _driver(patient: Patient) -> Finding:
    facts, probe = patient.facts, patient.facts.probes.cuda
    if probe.trouble is None:
        cuda = ".".join(map(str, probe.cuda_version)) if probe.cuda_version is not None else "unknown"
        return found("driver", "ok", f"{facts.driver or 'of unknown version'}, for CUDA {cuda} ({probe.library})")
    if probe.library is not None:
        code = _CODE.search(probe.trouble)
        number = int(code.group(1)) if code is not None else 0
        if number == 0 and "update the driver" in probe.trouble:
            return found("driver", "problem", probe.trouble, _INSTALL_ON_JETSON if patient.is_jetson else _INSTALL)
        mend = _JETSON_GROUPS if number == 999 and patient.is_jetson else _MENDS.get(number, "nvidia-smi")
        return found("driver", "problem", probe.trouble, mend)
    if patient.may_have_gpu:
        todo = "in a container, start it with --gpus all, or --runtime nvidia on a Jetson; otherwise install the driver"
        mend = _INSTALL_ON_JETSON if patient.is_jetson else _INSTALL
        return found("driver", "problem", f"{probe.trouble}: {todo}", mend)
    if patient.target is not None and patient.target.needs_gpu:
        mend = f"smpq doctor --device ssh://user@host --target {patient.target.name}"
        return found(
            "driver", "problem", f"there is no NVIDIA GPU here ({probe.trouble}): name a machine that has one", mend
        )
    return found("driver", "note", f"none, and no NVIDIA GPU ({probe.trouble})")


def _gpu(patient: Patient, index: int, gpu: GpuFacts) -> Finding:
    if gpu.trouble is not None:
        text = f"{gpu.name or f'number {index}'} takes no work: {gpu.trouble}. Look for what occupies it"
        return found("GPU", "problem" if index == 0 else "note", text, "nvidia-smi")
    parts = [f"{gpu.name}", gpu.sm, f"{gpu.sm_count} SMs", f"L2 {(gpu.l2_bytes or 0) / 2**20:.1f} MiB"]
    if gpu.memory_free is not None and gpu.memory_total is not None:
        parts.append(f"{gpu.memory_free / 1e9:.1f} of {gpu.memory_total / 1e9:.1f} GB free")
    clocks = patient.facts.probes.machine
    if index == 0 and clocks.mhz is not None and clocks.max_mhz is not None:
        parts.append(f"{clocks.mhz:.0f} of {clocks.max_mhz:.0f} MHz")
    text = f"{', '.join(parts)}, {gpu.uuid}"
    wanted = patient.target.compute_capabilities if patient.target is not None else ()
    if index == 0 and patient.target is not None and wanted and gpu.sm not in wanted:
        mend = f"smpq doctor --target {patient.target.family}"
        return found(
            "GPU",
            "problem",
            f"{text}; {patient.target.name} is for {', '.join(wanted)}: take a target for {gpu.sm}",
            mend,
        )
    return found("GPU", "ok", text)


def _packages(patient: Patient) -> Iterator[Finding]:
    probe = patient.facts.probes.cuda
    for package in patient.facts.packages_named("cuda-python"):
        old = probe.cuda_version is not None and probe.cuda_version[0] < _PYTHON_13_DRIVER
        if (
            package.importable
            and version_fits(package.version, ">=13")
            and (old or (probe.cuda_version is None and patient.is_jetson))
        ):
            text = (
                f"{package.version} needs a driver for CUDA 13 (580 or later): programs that use it say that there is "
                "no GPU. smpq does not "
                "use it"
            )
            yield found("cuda-python", "note", text, *patient.install("cuda-python<13"))
    pycuda = patient.facts.probes.pycuda
    if pycuda.trouble is not None:
        yield found(
            "pycuda", "note", f"it does not load ({pycuda.trouble}); smpq uses the driver's library in its place"
        )
    libraries = [package for package in patient.facts.packages_named("nvidia-.*") if package.importable]
    if libraries:
        yield found("CUDA by pip", "ok", ", ".join(f"{package.name} {package.version}" for package in libraries))
