"""Files about one policy's engine: how it was exported, built, measured, verified and fine-tuned."""

from __future__ import annotations

from typing import Literal

from calib.storage import AboveZero, Amount, Count, FileRecord, Fraction, Positive, Record, Sha256
from smpq.files import Interval, OfPolicy

StageName = Literal["eager", "float", "fake_quant", "onnx", "engine"]

STAGES: tuple[StageName, ...] = ("eager", "float", "fake_quant", "onnx", "engine")
"""What the evaluation data goes through, in this order."""


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
    """An engine file: what it is made of, with which runtime, whether it was built before, and what the builder warned of."""

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
    """`build.json`: the engines by file name, and the kernels by layer. `built_on` names another machine that builds them."""

    NAME = "build.json"
    MADE_BY = "smpq build"
    VERSION = 2

    built_on: str | None
    engines: dict[str, BuiltRow]
    kernels: dict[str, KernelRow]


class TimedRow(Record, frozen=True, kw_only=True):
    """An engine timed against the float engine: milliseconds of one call, the ratio with its 95 % interval, samples in a second.

    `p99_ms` is the 99th percentile of `p99_calls` single calls; without one `p99_note` says why.
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
    clock: str

    def __post_init__(self) -> None:
        if not self.ratio_interval.low <= self.ratio <= self.ratio_interval.high:
            raise ValueError(f"the ratio {self.ratio:.6g} is outside of its interval")
        if self.ratio_interval.low <= 0:
            raise ValueError("a ratio of two times is above zero, and so is its interval")


class LatencyFile(OfPolicy, frozen=True, kw_only=True):
    """`latency.json`: the measured engine, at the run's batch size and at others.

    `predicted_ratio` was made without this engine's measurements, from `predicted_from` other engines; None where there were none.
    """

    NAME = "latency.json"
    MADE_BY = "smpq measure"
    VERSION = 3

    machine: str
    rounds: Positive
    predicted_ratio: float | None
    predicted_interval: Interval | None
    predicted_from: Count
    measurement: TimedRow
    batches: tuple[TimedRow, ...]


class StageRow(Record, frozen=True, kw_only=True):
    """The metric of one stage, the paired change to the stage before, and the share of samples with the same top class.

    `not_run` says why there are no numbers.
    """

    mean: float | None
    interval: Interval | None
    change: float | None
    change_interval: Interval | None
    agreement: Fraction | None
    not_run: str | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) == (self.not_run is None):
            raise ValueError("a stage has a mean, or a reason why it was not run")
        if (self.mean is None) != (self.interval is None) or (self.change is None) != (self.change_interval is None):
            raise ValueError("a figure comes with its interval")


class VerifyFile(OfPolicy, frozen=True, kw_only=True):
    """`verify.json`: the evaluation data through every stage; `lost_at` names the stage with the largest drop that can be told from chance."""

    NAME = "verify.json"
    MADE_BY = "smpq verify"
    VERSION = 2

    metric: str
    samples: Positive
    stages: dict[StageName, StageRow]
    lost_at: StageName | None
    explanation: str


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
