"""Files about one policy's engine: how it was exported, built, measured and fine-tuned."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from calib.files.storage import AboveZero, Amount, AtLeastOne, Count, FileRecord, Positive, Record, Sha256
from smpq.files import Interval, OfPolicy

EngineName = Annotated[str, msgspec.Meta(pattern=r"^engine\.[^/\\\x00-\x1f]+$")]

_ROUNDING = 1e-6


class FloatModelFile(FileRecord, frozen=True, kw_only=True):
    """`model.float.json`: which file `model.float.onnx` is, and the fingerprint of what it was exported from."""

    NAME = "model.float.json"
    MADE_BY = "smpq export"

    fingerprint: Sha256
    sha256: Sha256


class ExportFile(OfPolicy, frozen=True, kw_only=True):
    """`export.json`: the lowered model of a policy; `changes` counts what each pass changed."""

    NAME = "export.json"
    MADE_BY = "smpq export"

    target: str
    changes: dict[str, Count]
    merged_tensors: tuple[str, ...]
    size_bytes: Positive
    sha256: Sha256


class BuiltRow(Record, frozen=True, kw_only=True):
    """An engine file: what it is made of, with which runtime, whether it was built before, and what the builder warned
    of.
    """

    sha256: Sha256
    size_bytes: Positive
    build_seconds: Amount
    versions: dict[str, str]
    from_cache: bool = False
    warnings: tuple[str, ...] = ()


class KernelRow(Record, frozen=True, kw_only=True):
    """What a layer became in the engine, and whether that is its planned format."""

    kernel: str
    agrees: bool


class BuildFile(OfPolicy, frozen=True, kw_only=True):
    """`build.json`: the engines by file name, and the kernels by layer. `built_on` names another machine that builds
    them.
    """

    NAME = "build.json"
    MADE_BY = "smpq build"
    VERSION = 2

    built_on: str | None
    engines: dict[EngineName, BuiltRow]
    kernels: dict[str, KernelRow]


class TimingRow(Record, frozen=True, kw_only=True):
    """An engine timed against the float engine: milliseconds of one call, the ratio with its 95 % interval, samples in
    a second.

    1. `p99_ms` is the 99th percentile of `p99_calls` single calls; without one `p99_note` says why.
    2. Of an engine on a GPU: `enqueue_ms` is what the host takes to enqueue a call; `hot_ms` and `cold_ms` are single
       calls behind another one, and behind a write of twice the L2 cache.
    3. `slowdown` is what the float engine took in the rounds by its fastest known; see `deploy.runner.quiet`.
    4. `throttled` says what slowed the machine down, each time that the engine was timed.
    """

    batch: Positive
    ratio: AboveZero
    ratio_interval: Interval
    engine_ms: AboveZero
    float_ms: AboveZero
    p99_ms: AboveZero | None
    p99_calls: Count
    p99_note: str | None
    throughput: AboveZero
    enqueue_ms: AboveZero | None
    hot_ms: AboveZero | None
    cold_ms: AboveZero | None
    slowdown: AtLeastOne
    throttled: tuple[str, ...]
    clock: str

    def __post_init__(self) -> None:
        if not self.ratio_interval.low <= self.ratio <= self.ratio_interval.high:
            raise ValueError(f"the ratio {self.ratio:.6g} is outside of its interval")
        if self.ratio_interval.low <= 0:
            raise ValueError("a ratio of two times is above zero, and so is its interval")
        if (self.p99_ms is None) == (self.p99_note is None) or (self.p99_ms is not None and not self.p99_calls):
            raise ValueError("there is a p99 of some calls, or a note that says why there is none")
        if abs(self.throughput * self.engine_ms / (1000 * self.batch) - 1) > _ROUNDING:
            raise ValueError("the throughput is not that of the batch and its time")
        if (self.hot_ms is None) != (self.cold_ms is None):
            raise ValueError("hot and cold times are measured together")


class LatencyFile(OfPolicy, frozen=True, kw_only=True):
    """`latency.json`: the measured engine, at the run's batch size and at others.

    `predicted_ratio` was made without this engine's measurements, from `predicted_from` other engines; None where there
    were none. `turn` is the first turn of the measurement: what is asked for again is measured in the turns behind
    those that are known.
    """

    NAME = "latency.json"
    MADE_BY = "smpq measure"
    VERSION = 5

    machine: str
    rounds: Positive
    predicted_ratio: float | None
    predicted_interval: Interval | None
    predicted_from: Count
    measurement: TimingRow
    batches: tuple[TimingRow, ...]
    turn: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio, ends = self.predicted_ratio, self.predicted_interval
        if not (ratio is None) == (ends is None) == (self.predicted_from == 0):
            raise ValueError("a prediction has an interval, and engines that it is made from")
        if ratio is not None and ends is not None and ratio not in ends:
            raise ValueError("a prediction lies in its interval")


class JudgedRow(Record, frozen=True, kw_only=True):
    """How a model does on the calibration data."""

    value: float
    metric: float


class FinetuneFile(OfPolicy, frozen=True, kw_only=True):
    """`finetune.json`: what fine-tuning did, on calibration data, and the hash of the weights that it made."""

    NAME = "finetune.json"
    MADE_BY = "smpq finetune"

    sha256: Sha256
    kept: Literal["start", "end"]
    before: JudgedRow
    after: JudgedRow
    samples: str
    seconds: Amount
    settings: dict[str, str | int | float | bool | None]
    history: tuple[dict[str, float], ...]
