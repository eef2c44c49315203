"""What a machine says about itself when `smpq doctor` asks it, as typed records; see `deploy.runner.doctor`."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from calib.files.storage import Amount, Count, Record
from deploy.terminal.printable import printable

Text = Annotated[str, msgspec.Meta(max_length=500)]
Number = Annotated[int, msgspec.Meta(ge=0, le=99_999)]


class Shown(Record, frozen=True, kw_only=True):
    """A record whose texts can be printed: what a terminal would not print becomes question marks."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, str):
                msgspec.structs.force_setattr(self, name, printable(value))
            elif isinstance(value, tuple) and any(isinstance(each, str) for each in value):
                msgspec.structs.force_setattr(self, name, tuple(printable(each) for each in value))


class PythonFacts(Shown, frozen=True, kw_only=True):
    """The Python that was asked. `sees_system`: it imports the system's packages. `managed`: pip refuses to install
    into it.
    """

    executable: Text
    prefix: Text
    venv: bool
    sees_system: bool
    managed: bool
    pip: bool


class JetsonFacts(Shown, frozen=True, kw_only=True):
    """A Jetson: the line of its release, its board and power mode, and the clocks of the GPU: now, least and most."""

    release: Text | None
    board: Text | None
    power_mode: Text | None
    cur_mhz: Amount | None
    min_mhz: Amount | None
    max_mhz: Amount | None


class PackageFacts(Shown, frozen=True, kw_only=True):
    """An installed distribution. `importable`: the Python that was asked imports from there."""

    name: Text
    version: Text
    place: Text
    importable: bool


class RoomFacts(Shown, frozen=True, kw_only=True):
    """Free and total memory, and the free room on the disk that measuring writes to, in bytes."""

    memory_free: Count | None
    memory_total: Count | None
    disk_free: Count | None
    disk: Text
    writable: bool


class MachineProbe(Shown, frozen=True, kw_only=True):
    """How measurements name the machine, and the clocks of its first GPU by the driver's library, with what holds them
    down.
    """

    name: Text | None = None
    mhz: Amount | None = None
    max_mhz: Amount | None = None
    limits: Annotated[tuple[Text, ...], msgspec.Meta(max_length=40)] = ()
    trouble: Text | None = None
    said: Text = ""


class NumpyProbe(Shown, frozen=True, kw_only=True):
    """Whether numpy is there, and loads."""

    version: Text | None = None
    trouble: Text | None = None
    said: Text = ""


class PycudaProbe(NumpyProbe, frozen=True, kw_only=True):
    """Whether pycuda is there, and its driver module loads."""


class GpuFacts(Shown, frozen=True, kw_only=True):
    """One GPU; `trouble` says why it takes no context."""

    name: Text | None
    uuid: Text | None
    compute_capability: tuple[Number, Number] | None
    sm_count: Count | None
    l2_bytes: Count | None
    memory_total: Count | None
    memory_free: Count | None
    trouble: Text | None

    @property
    def sm(self) -> str:
        """Compute capability as in `sm87`."""
        return "sm{}{}".format(*self.compute_capability) if self.compute_capability is not None else "sm?"


class CudaProbe(Shown, frozen=True, kw_only=True):
    """The driver's library and its GPUs; `trouble` is what timing an engine would end with."""

    library: Text | None = None
    cuda_version: tuple[Number, Number] | None = None
    gpus: Annotated[tuple[GpuFacts, ...], msgspec.Meta(max_length=16)] = ()
    trouble: Text | None = None
    said: Text = ""


class TrtProbe(Shown, frozen=True, kw_only=True):
    """A TensorRT module: whether it loads and makes a builder, and the CUDA that its library has loaded."""

    version: Text | None = None
    place: Text | None = None
    builder: bool = False
    cuda_major: Number | None = None
    trouble: Text | None = None
    said: Text = ""


class OrtProbe(Shown, frozen=True, kw_only=True):
    """ONNX Runtime with one provider: whether a session keeps it (`refused`: what its library does not find), and runs
    on it.
    """

    version: Text | None = None
    available: Annotated[tuple[Text, ...], msgspec.Meta(max_length=40)] = ()
    cuda_version: Text | None = None
    kept: bool = False
    ran: bool = False
    trouble: Text | None = None
    refused: Text | None = None
    said: Text = ""


class TorchProbe(Shown, frozen=True, kw_only=True):
    """PyTorch: the CUDA that it was built for, None for a CPU build, and whether it sees a GPU."""

    version: Text | None = None
    build: Text | None = None
    cuda: bool = False
    trouble: Text | None = None
    said: Text = ""


class Probes(Record, frozen=True, kw_only=True):
    """What the libraries did when they were tried, each in a process of its own.

    1. `version` is None where a module is not there or does not load. `trouble` is why it does not load or work, or how
       its process ended without an answer: a crash, a time limit.
    2. `said` is the most telling line that was printed meanwhile.
    """

    machine: MachineProbe
    numpy: NumpyProbe
    cuda: CudaProbe
    tensorrt: TrtProbe
    tensorrt_rtx: TrtProbe
    ort_cpu: OrtProbe
    ort_cuda: OrtProbe
    ort_tensorrt: OrtProbe
    pycuda: PycudaProbe
    torch: TorchProbe | None = None


class Facts(Shown, frozen=True, kw_only=True):
    """Everything that a machine says about itself. `nvidia_devices` counts PCI devices of NVIDIA, `driver` is the
    driver's version.
    """

    system: Text
    architecture: Text
    python: PythonFacts
    jetson: JetsonFacts | None
    nvidia_devices: Number
    driver: Text | None
    packages: Annotated[tuple[PackageFacts, ...], msgspec.Meta(max_length=200)]
    tools: dict[Text, Text | None]
    room: RoomFacts
    probes: Probes

    def packages_named(self, pattern: str) -> list[PackageFacts]:
        """Return the packages whose names fit a regular expression."""
        return [package for package in self.packages if re.fullmatch(pattern, package.name)]


class Answer(Record, frozen=True, kw_only=True):
    """The version of a machine's Python and, where that is not too old to tell, its facts."""

    python: tuple[Number, Number, Number]
    facts: Facts | None
