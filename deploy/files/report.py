"""`report.json`: everything that the page of a run shows. It is made of the other files, which check what can
contradict itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from calib.files.storage import AboveZero, Amount, AtLeastOne, Bits, Count, FileRecord, Positive, Record
from deploy.files.curve import CurveFile
from deploy.files.engine import FinetuneFile
from deploy.files.search import SizesRow, SkippedRow
from deploy.files.synthetic import SyntheticFile
from deploy.files.verification import StageName, VerifyFile
from smpq.files import ContributionsFile, FormatText, Interval, StabilityFile

MOST_SHOWN = 1_000
"""Measured engines, the last ones: more make no picture."""


class LatencyPart(Record, frozen=True, kw_only=True):
    """The measured engine, see `LatencyFile`."""

    ratio: AboveZero
    interval: Interval
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
    batch: Positive
    rounds: Positive
    machine: str
    predicted_ratio: float | None
    predicted_interval: Interval | None
    predicted_from: Count


class LimitRow(Record, frozen=True, kw_only=True):
    """One limit of the budget and what the engine reaches, in `unit`, with the 95 % interval of what was measured; None
    where that was not measured.
    """

    cost: str
    limit: AboveZero
    reached: float | None
    unit: str
    met: bool | None
    interval: Interval | None = None


class LayerRow(Record, frozen=True, kw_only=True):
    """A layer with its format, its score where it has one, and the kernel that it became."""

    path: str
    operator: str
    parameters: Positive
    macs: Count
    format: FormatText
    bits: Bits
    score: float | None
    standard_error: Amount | None
    interval: Interval | None
    samples: Count | None
    alone: float | None
    kernel: str | None
    kernel_agrees: bool | None

    def __post_init__(self) -> None:
        if (self.score is None) != (self.interval is None):
            raise ValueError("a score comes with its interval")


class ReportedStep(Record, frozen=True, kw_only=True):
    """An engine of the loop; `measured` is None when the runtime refused it, for `refused`."""

    label: str
    predicted: float
    predicted_interval: Interval
    measured: AboveZero | None
    measured_interval: Interval | None
    refused: str | None = None
    met: bool

    def __post_init__(self) -> None:
        if (self.measured is None) != (self.measured_interval is None) or (self.measured is None) != (
            self.refused is not None
        ):
            raise ValueError("an engine is either measured, with its interval, or refused")


class CurvePoint(Record, frozen=True, kw_only=True):
    """The best plan by the scores for one budget on `cost`, and the value that they predict."""

    cost: str
    reached: float
    value: float


class ScoresPart(Record, frozen=True, kw_only=True):
    """Where the scores came from."""

    method: str
    value: str
    estimator: str
    evaluations: Count
    permutations: Count
    seed: Count
    stop_reason: str
    notes: tuple[str, ...]


class DestinationPart(Record, frozen=True, kw_only=True):
    """Where the engine runs: whether it has to be an NVIDIA GPU, whether its latency counts at all, and whether it is
    an ONNX file, or plans for `compute_capabilities`.
    """

    needs_gpu: bool
    timed: bool
    portable: bool
    compute_capabilities: tuple[str, ...]


class ReportFile(FileRecord, frozen=True, kw_only=True):
    """The plan, the proof, and where every number came from; what a stage has not made yet is None or empty.

    `accuracy` has the metric of the stages that ran on all evaluation data, and None for others, whose figures are in
    `verification`. `machine` is the one that timed the engine, None before that. `not_on_orin` names the formats of the
    plan that Orin's GPU has no kernels for, as in "w3a8 on conv2d". `sizes` are those of the inputs that have several.
    `synthetic` is what calibrated a run without samples of the task. `is_float` says that no layer has another format
    than in the float engine. `cut_short` says that scoring or the search had not come to its end. `tuning` is what can
    still win accuracy back by the weights: fine-tuning where the task has training data, else reconstruction; None
    where nothing can, or one was done. `options` are those of `smpq run` that differ from the defaults, besides the
    budget and the directory; none where a Python program made the run. `notes` are those of `CalibrationFile`.
    """

    NAME = "report.json"
    MADE_BY = "smpq report"
    VERSION = 13

    task: str
    target: str
    destination: DestinationPart
    engine: str | dict[str, str] | None
    float_engine: str | dict[str, str] | None
    policy: dict[str, FormatText]
    is_float: bool = False
    accuracy: dict[StageName, float | None]
    verification: VerifyFile | None
    latency: LatencyPart | None
    latency_note: str | None
    size_bytes: Amount
    float_size_bytes: Amount
    avg_bits: Amount
    bops: Amount
    float_bops: Amount
    budget: str
    limits: tuple[LimitRow, ...]
    met: bool
    layers: tuple[LayerRow, ...]
    stability: StabilityFile | None
    contributions: ContributionsFile | None
    cut_short: bool
    observations: Annotated[tuple[ReportedStep, ...], msgspec.Meta(max_length=MOST_SHOWN)]
    pareto: tuple[CurvePoint, ...]
    curve: CurveFile | None
    scores: ScoresPart
    skipped: tuple[SkippedRow, ...]
    refused: dict[str, str]
    not_on_orin: tuple[str, ...]
    sizes: dict[str, SizesRow]
    synthetic: SyntheticFile | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    finetuning: FinetuneFile | None
    tuning: Literal["finetune", "reconstruct"] | None = None
    settings: dict[str, str | int | float | bool | tuple[str, ...] | None]
    options: dict[str, tuple[str, ...]]
    versions: dict[str, str]
    machine: str | None
    seconds: dict[str, Amount]
