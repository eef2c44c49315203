"""What is sent to a device and what comes back, as typed records: the experiment, the measurements, and the machine's
name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec

from calib.errors import UserError
from calib.files.storage import Amount, AtLeastOne, Count, FileRecord, Positive, Record, Sha256, read_record
from deploy.runner.experiment import SCHEMA

LARGEST_MESSAGE_BYTES = 64_000_000
"""The layers of some hundred TensorRT engines come to a few megabytes."""

ShortHash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
Line = Annotated[str, msgspec.Meta(max_length=4000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
Milliseconds = Annotated[float, msgspec.Meta(ge=1e-9, le=1e9)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
"""A picosecond to eleven days."""
Ratio = Annotated[float, msgspec.Meta(gt=0, le=1e18)]
Size = Annotated[int, msgspec.Meta(ge=-1, le=2**53)]
Runtime = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,40}$")]
"""A name of `deploy.runner.bench.OPENERS`; what a device says is compared with what was asked for."""
Cause = Literal["refused", "transient", "internal"]

MessageType = TypeVar("MessageType", bound=FileRecord)


class Model(Record, frozen=True, kw_only=True):
    """A lowered ONNX file: the hash of its content as its name, its path in the directory, and the runtime's settings
    for it.

    `sha256` is the hash of the file that is carried to a device, which differs from the name where weights are in a
    file of their own; None for a file that is not carried.
    """

    name: ShortHash
    model: Line
    settings: dict[str, Any]
    sha256: Sha256 | None


class Rounds(Record, frozen=True, kw_only=True):
    """How to measure; see `deploy.runner.protocol.Protocol`."""

    rounds: Positive
    round_ms: Milliseconds
    calls: Positive
    singles: Count
    sets: Positive
    seconds: Seconds


class Asked(FileRecord, frozen=True, kw_only=True, rename={"float_": "float"}):
    """`experiment.json`: what a device is asked to measure."""

    VERSION: ClassVar[int] = SCHEMA
    runtime: Runtime
    label: str
    fingerprint: Sha256
    batch: Positive
    protocol: Rounds
    seed: Count
    inputs: Line
    float_: Model
    candidates: tuple[Model, ...]


class Tensor(Record, frozen=True, kw_only=True):
    """A tensor of a layer; of weights TensorRT 10 tells the number of elements in place of the shape."""

    name: str
    dtype: str
    shape: tuple[Size, ...]


class Layer(Record, frozen=True, kw_only=True):
    """A layer of an engine as its inspector tells of it, with its milliseconds; see `deploy.runner.trt_layers`."""

    kind: str
    name: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx_nodes: tuple[str, ...]
    ms: Amount | None = None


class Reading(Record, frozen=True, kw_only=True):
    """Clocks in MHz, temperatures in degrees Celsius, and what slows a machine down; see
    `deploy.runner.state.read_state`.
    """

    cpu_mhz: Amount | None
    gpu_mhz: Amount | None
    gpu_max_mhz: Amount | None
    temperatures_c: dict[str, float] | None
    limits: tuple[Line, ...]
    counters: dict[Name, Count]


class State(Record, frozen=True, kw_only=True):
    """The machine right before and right after the rounds of a result.

    `throttled` names what slowed it down, and follows from the two readings. The engine was then timed again, up to
    three `timings` in all; these are the readings of the last one.
    """

    before: Reading
    after: Reading
    throttled: tuple[Line, ...]
    timings: Annotated[int, msgspec.Meta(ge=1, le=3)]


class Result(Record, frozen=True, kw_only=True):
    """One candidate on one device: timed against the float engine, or failed with its reason and cause.

    1. Times are milliseconds of one call, intervals 95 %, `throughput` is samples in a second, `build_seconds` the time
       to make the engine.
       `p99_ms` is the 99th percentile of `p99_calls` single calls; without one `p99_note` says why.
    2. Of engines on a GPU: `enqueue_ms` is what the host takes to put a call on the GPU's stream; `hot_ms` and
       `cold_ms` are single calls behind another one, and behind a write of twice the L2 cache. `notes` say which of
       these, or of the layers, could not be told.
    3. Of a failed candidate all figures are None, and `nodes` names the ONNX nodes that the runtime blames, if it says
       which.
    4. `cause` is "refused" when the runtime makes no engine of this model, "transient" when another attempt may
       succeed, and "internal" when the program on the device has a bug.
    5. `plan_sha256` is the hash of the plan that was timed, None for runtimes without plans.
    6. `slowdown` is what the float engine took in these rounds by its fastest known. Where something else was at work,
       the interval of the ratio is wider for it; see `deploy.runner.quiet`.
    7. `key` is the hash of everything that the figures depend on, the device apart.

    Whether the figures agree with each other is checked by `deploy.devices.checks`.
    """

    key: ShortHash
    name: ShortHash
    batch: Positive
    failed: Line | None
    cause: Cause | None
    nodes: tuple[str, ...]
    clock: Line | None
    slowdown: AtLeastOne | None
    ratio: Ratio | None
    ratio_interval: tuple[Ratio, Ratio] | None
    engine_ms: Milliseconds | None
    float_ms: Milliseconds | None
    p99_ms: Milliseconds | None
    p99_calls: Count | None
    p99_note: Line | None
    throughput: Ratio | None
    enqueue_ms: Milliseconds | None
    hot_ms: Milliseconds | None
    cold_ms: Milliseconds | None
    rounds_ms: tuple[Milliseconds, ...]
    float_rounds_ms: tuple[Milliseconds, ...]
    build_seconds: Amount | None
    layers: tuple[Layer, ...] | None
    notes: tuple[Line, ...]
    state: State | None
    plan_sha256: Sha256 | None = None

    def __post_init__(self) -> None:
        needed = (
            self.clock,
            self.slowdown,
            self.ratio,
            self.ratio_interval,
            self.engine_ms,
            self.float_ms,
            self.throughput,
            self.build_seconds,
            self.state,
        )
        figures = [
            *needed,
            self.p99_ms,
            self.p99_calls,
            self.p99_note,
            self.enqueue_ms,
            self.hot_ms,
            self.cold_ms,
            self.layers,
            self.notes or None,
            self.plan_sha256,
            self.rounds_ms or None,
            self.float_rounds_ms or None,
        ]
        if (self.failed is None) != (self.cause is None):
            raise ValueError("a failure has a reason and a cause, and nothing else has one of them")
        if self.failed is not None and any(figure is not None for figure in figures):
            raise ValueError("a candidate that failed has no figures")
        if self.failed is None and (None in needed or not self.rounds_ms or not self.float_rounds_ms or self.nodes):
            raise ValueError("a candidate that was timed has all figures, and blames no nodes")
        if self.failed is None and (self.p99_calls is None or (self.p99_ms is None) == (self.p99_note is None)):
            raise ValueError("a timed candidate has a p99 with its number of calls, or says why it has none")
        if (self.hot_ms is None) != (self.cold_ms is None):
            raise ValueError("hot and cold times are measured together")


class Gpu(Record, frozen=True, kw_only=True):
    """The GPU that engines run on. `driver_version` is the CUDA version that its driver knows."""

    name: Name
    uuid: Name | None
    compute_capability: tuple[Count, Count]
    driver_version: tuple[Count, Count]
    sm_count: Positive
    l2_bytes: Count
    memory_bytes: Count


class Hardware(Record, frozen=True, kw_only=True):
    """What a device is, for people; None for what it is not, or does not tell."""

    gpu: Gpu | None
    jetson_release: Line | None
    power_mode: Line | None


class DeviceResults(FileRecord, frozen=True, kw_only=True):
    """`measurements.json`: what a device has measured of the models and data that `fingerprint` names."""

    VERSION: ClassVar[int] = SCHEMA
    fingerprint: Sha256
    runtime: Runtime
    versions: dict[Name, Line]
    machine: Name
    hardware: Hardware
    results: tuple[Result, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names((self.machine, *self.versions, *self.versions.values()))


class Described(Record, frozen=True, kw_only=True):
    """How a device names itself."""

    machine: Name

    def __post_init__(self) -> None:
        check_names([self.machine])


class Bundle(FileRecord, frozen=True, kw_only=True):
    """What the last bundle of a run asks for, and the keys of the results that earlier bundles asked for.

    `taken` holds the hashes of the files of results that were taken in.
    """

    asked: Asked
    earlier: tuple[ShortHash, ...]
    taken: tuple[Sha256, ...] = ()


class Used(Record, frozen=True, kw_only=True):
    """A directory that a run has made on the device at `address`, and not removed yet."""

    address: str
    directory: str


class Place(FileRecord, frozen=True, kw_only=True):
    """A random name of a run's directory, so that two runs never share one on a device, and what it has left on
    devices.
    """

    name: ShortHash
    used: tuple[Used, ...] = ()


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError when a name has characters that a terminal would not print."""
    for name in names:
        if not name.isprintable():
            raise ValueError(f"the name {name!r:.80} has characters that cannot be printed")


def read_message(path: Path, kind: type[MessageType], missing: str, repair: str) -> MessageType:
    """Read a file that came from a device; UserError when it is missing, too large to be one, damaged, or of another
    version.
    """
    try:
        size = path.stat().st_size
    except OSError:
        size = 0  # which reading tells
    if size > LARGEST_MESSAGE_BYTES:
        raise UserError(f"{path} has {size / 1e6:.0f} MB, more than any file of its kind: {repair}")
    return read_record(path, kind, repair, missing=missing)
