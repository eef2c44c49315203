"""What `smpq compare` finds in the files of several runs. It is printed, and no file of a run."""

from __future__ import annotations

from calib.files.storage import AboveZero, Amount, Bits, Count, Positive, Record
from deploy.files.verification import StageName
from smpq.files import FormatText, Interval


class ComparedAccuracy(Record, frozen=True, kw_only=True):
    """The metric of the last stage that ran on all evaluation data, with its 95 % interval; `change` is the paired
    difference to the first stage.
    """

    metric: str
    stage: StageName
    samples: Positive
    mean: float
    interval: Interval
    change: float
    change_interval: Interval


class ComparedLatency(Record, frozen=True, kw_only=True):
    """Time of the engine as a share of the float engine's, with its 95 % interval, and on which machine."""

    ratio: AboveZero
    interval: Interval
    machine: str


class ComparedRun(Record, frozen=True, kw_only=True):
    """One run; what it has not made is None. `seconds` is what the command took that wrote `report.json`, `evaluations`
    what scoring evaluated.
    """

    path: str
    method: str | None
    target: str
    budget: str | None
    data_free: bool
    avg_bits: Amount
    size_bytes: Amount
    accuracy: ComparedAccuracy | None
    latency: ComparedLatency | None
    evaluations: Count | None
    seconds: Amount | None
    formats: tuple[FormatText, ...]
    """Of each layer, in the order of `Comparison.layers`."""
    bits: tuple[Bits, ...]
    """Weight bits of each layer."""


class ComparedScores(Record, frozen=True, kw_only=True):
    """The scores of two runs, by their numbers from 0, over the `moves` that both have scored.

    `spearman` is the rank correlation over all of these, `within` the mean of those over the layers in one format each.
    None where there is none: too few moves, or equal scores.
    """

    first: Count
    second: Count
    moves: Count
    spearman: float | None
    within: float | None


class ComparedLayer(Record, frozen=True, kw_only=True):
    """A layer, by its module path."""

    path: str
    parameters: Positive


class Comparison(Record, frozen=True, kw_only=True):
    """Runs of one network side by side."""

    runs: tuple[ComparedRun, ...]
    layers: tuple[ComparedLayer, ...]
    scores: tuple[ComparedScores, ...]
