"""Facts of a Linux machine with a GPU on which everything works, and of others that differ in something."""

from __future__ import annotations

from typing import Any

import msgspec

from deploy.doctor.examine import judged
from deploy.doctor.facts import (
    Answer,
    CudaProbe,
    Facts,
    GpuFacts,
    JetsonFacts,
    MachineProbe,
    NumpyProbe,
    OrtProbe,
    PackageFacts,
    Probes,
    PycudaProbe,
    PythonFacts,
    RoomFacts,
    TorchProbe,
    TrtProbe,
)
from deploy.doctor.here import Requirement
from deploy.doctor.record import DoctorRecord, Finding
from deploy.targets.target import target_from_name

SITE = "/home/me/venv/lib/python3.11/site-packages"
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
NEEDED = [Requirement("torch", "2.9", "2.13.0")]
ORT = OrtProbe(version="1.31.1", available=PROVIDERS, cuda_version="13.0", kept=True, ran=True)
GPU = GpuFacts(
    name="RTX 4090", uuid="GPU-1", compute_capability=(8, 9), sm_count=128, l2_bytes=72 << 20, memory_total=24 << 30,
    memory_free=20 << 30, trouble=None,
)  # fmt: skip
FACTS = Facts(
    system="Linux",
    architecture="x86_64",
    python=PythonFacts(
        executable="/home/me/venv/bin/python3",
        prefix="/home/me/venv",
        venv=True,
        sees_system=False,
        managed=False,
        pip=True,
    ),
    jetson=None,
    nvidia_devices=1,
    driver="580.65",
    packages=(),
    tools={},
    room=RoomFacts(
        memory_free=8 << 30, memory_total=16 << 30, disk_free=8 << 30, disk="/home/me/.cache", writable=True
    ),
    probes=Probes(
        machine=MachineProbe(name="EPYC, RTX 4090, Linux x86_64", mhz=2520.0, max_mhz=3105.0),
        numpy=NumpyProbe(version="2.4.6"),
        cuda=CudaProbe(library="/usr/lib/libcuda.so.1", cuda_version=(13, 0), gpus=(GPU,)),
        tensorrt=TrtProbe(version="10.16.0.72", place=f"{SITE}/tensorrt", builder=True, cuda_major=13),
        tensorrt_rtx=TrtProbe(version="1.7.1.116", place=f"{SITE}/tensorrt_rtx", builder=True),
        ort_cpu=ORT,
        ort_cuda=ORT,
        ort_tensorrt=ORT,
        pycuda=PycudaProbe(),
        torch=TorchProbe(version="2.13.0", build="13.0", cuda=True),
    ),
)
ORIN = JetsonFacts(
    release="# R36 (release), REVISION: 4.3, GCID: 1", board="Jetson AGX Orin", power_mode="MAXN", cur_mhz=1300.0,
    min_mhz=1300.0, max_mhz=1300.0
)  # fmt: skip
NO_DRIVER = CudaProbe(trouble="the driver's library does not load (libcuda.so.1: cannot open shared object file)")


def changed(record: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(record, **changes)


def with_probes(facts: Facts = FACTS, **probes: Any) -> Facts:
    return changed(facts, probes=changed(facts.probes, **probes))


def packages(*names: str, place: str = SITE, importable: bool = True) -> tuple[PackageFacts, ...]:
    """Packages from texts such as "tensorrt 10.3.0"."""
    return tuple(
        PackageFacts(name=n, version=v, place=place, importable=importable) for n, v in (text.split() for text in names)
    )


def examined(
    facts: Facts | None = FACTS,
    target: str | None = None,
    *,
    address: str = "",
    python: tuple[int, int, int] = (3, 11, 7),
) -> DoctorRecord:
    return judged(
        address, Answer(python=python, facts=facts), target_from_name(target) if target is not None else None, NEEDED
    )


def problems(record: DoctorRecord) -> list[Finding]:
    return [finding for finding in record.findings if finding.state == "problem"]


def works(record: DoctorRecord) -> dict[str, tuple[bool, bool, bool]]:
    """Search, build and measure, by family."""
    return {row.family: (row.search is None, row.build is None, row.measure is None) for row in record.works}
