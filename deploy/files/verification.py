"""`verify.json`: the evaluation data through every stage from the user's module to the engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from calib.files.storage import Fraction, Positive, Record
from smpq.files import Interval, OfPolicy

StageName = Literal["eager", "float", "fake_quant", "onnx", "engine"]

STAGES: tuple[StageName, ...] = ("eager", "float", "fake_quant", "onnx", "engine")
"""What the evaluation data goes through, in this order."""

NORMAL_95 = 1.96
"""Half the width of a 95 % interval of a normal distribution, in standard errors."""
_MEANS_ROUNDING = 1e-4
"""Means are sums of single precision."""
_METRIC_ROUNDING = 1e-4
"""A change of a metric by this share of its spread over samples may be rounding, however surely the data tell it from
zero.
"""
_SAME_CONFIDENCE = 0.02
"""Confidences that move by less in the mean are told, and not warned of."""


class StageRow(Record, frozen=True, kw_only=True):
    """The metric of one stage, in the metric's unit.

    1. `mean` with its 95 % interval is over this stage's own `samples`.
    2. `change` is the paired difference to the stage before, with its interval, over the samples that both have.
       `agreement` is the share of those with the same top class.
    3. `problem` says how its outputs differ from what they were compared with. `not_run` says why there are no numbers.
    """

    mean: float | None
    interval: Interval | None
    change: float | None
    change_interval: Interval | None
    agreement: Fraction | None
    samples: Positive | None
    problem: str | None = None
    not_run: str | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) == (self.not_run is None):
            raise ValueError("a stage has a mean, or a reason why it was not run")
        if (self.mean is None) != (self.samples is None):
            raise ValueError("a mean is one of some samples")
        if (self.mean is None) != (self.interval is None) or (self.change is None) != (self.change_interval is None):
            raise ValueError("a figure comes with its interval")
        for value, ends in ((self.mean, self.interval), (self.change, self.change_interval)):
            if value is not None and ends is not None and value not in ends:
                raise ValueError("a figure lies in its interval")


class WholeChange(Record, frozen=True, kw_only=True):
    """The last stage that ran against the first, paired over all samples: the change of the metric with its 95 %
    interval, and the share of samples with the same top class.
    """

    change: float
    interval: Interval
    agreement: Fraction | None

    def __post_init__(self) -> None:
        if self.change not in self.interval:
            raise ValueError("a figure lies in its interval")


class Quantiles(Record, frozen=True, kw_only=True):
    """Where 5, 50 and 95 % of the values lie below."""

    low: float
    median: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.median <= self.high:
            raise ValueError("quantiles are ordered")


class Confidence(Record, frozen=True, kw_only=True):
    """How sure the first and the last stage that ran are of the samples, over all of them.

    `change` is the mean of the paired differences with its 95 % interval.
    """

    first: Quantiles
    last: Quantiles
    change: float
    interval: Interval

    def __post_init__(self) -> None:
        if self.change not in self.interval:
            raise ValueError("a figure lies in its interval")

    @property
    def has_moved(self) -> bool:
        """Whether the mean moved by more than 0.02, as far as the data tell: a threshold no longer means the same."""
        return self.interval.low > _SAME_CONFIDENCE or self.interval.high < -_SAME_CONFIDENCE


def spread_of(stages: Mapping[StageName, StageRow]) -> float:
    """Return how far single samples are from the first stage's mean: their standard deviation, or the mean's size
    where all are the same.
    """
    first = stages.get(STAGES[0])
    if first is None or first.interval is None or first.mean is None or first.samples is None:
        return 0.0
    width = first.interval.high - first.interval.low
    return width / (2 * NORMAL_95) * math.sqrt(first.samples) or abs(first.mean)


def lowers(change: float, interval: Interval, spread: float) -> bool:
    """Whether a change of the metric is a loss that the data tell from zero, and more than the rounding of float32.

    `spread` is what `spread_of` returns.
    """
    return interval.high < 0 and change < -_METRIC_ROUNDING * spread


def lost_stages(stages: Mapping[StageName, StageRow]) -> list[StageName]:
    """Return the stages that lost accuracy, the worst first.

    Those with a problem come first, in their order. The others have a drop that `lowers` the metric, the largest first.
    """
    spread = spread_of(stages)
    wrong = [name for name in STAGES if name in stages and stages[name].problem is not None]
    drops = {
        name: row.change
        for name, row in stages.items()
        if name not in wrong
        and row.change is not None
        and row.change_interval is not None
        and lowers(row.change, row.change_interval, spread)
    }
    return [*wrong, *sorted(drops, key=lambda name: drops[name])]


class VerifyFile(OfPolicy, frozen=True, kw_only=True):
    """`verify.json`: the stages, and what they come to.

    1. The first and the last stage that ran have all `samples`. Those between have as many as it takes to say where
       accuracy was lost.
    2. `whole` compares the last with the first.
    3. `confidence` is None where the outputs do not say how sure the model is.
    4. `lost_at` is the worst of the stages that lost accuracy.
    """

    NAME = "verify.json"
    MADE_BY = "smpq verify"
    VERSION = 5

    metric: str
    samples: Positive
    stages: dict[StageName, StageRow]
    whole: WholeChange
    confidence: Confidence | None
    lost_at: StageName | None
    explanation: str

    @property
    def lost(self) -> list[StageName]:
        """See `lost_stages`."""
        return lost_stages(self.stages)

    @property
    def lost_in_all(self) -> bool:
        """Whether the last stage is less accurate than the first, by a loss that the data tell from zero."""
        return lowers(self.whole.change, self.whole.interval, spread_of(self.stages))

    @property
    def largest_drop(self) -> StageName:
        """The stage with the largest drop, whether or not the data can tell it from zero."""
        changes = {name: row.change for name, row in self.stages.items() if row.change is not None}
        return min(changes, key=lambda name: changes[name])

    @property
    def means(self) -> dict[StageName, float]:
        """The metric of the stages that ran on all samples, which alone can be compared as they stand."""
        return {name: mean for name, mean, samples in self._ran() if samples == self.samples}

    def contradiction(self) -> str | None:
        """Say which of its figures contradict each other; None where none do."""
        ran = list(self._ran())
        if len(ran) < 2:
            return "fewer than two stages ran"
        if any(samples > self.samples for _, _, samples in ran):
            return "a stage has more samples than there are"
        if not ran[0][2] == ran[-1][2] == self.samples:
            return "the first or the last stage has not all samples"
        before: tuple[float, int] | None = None
        for name, mean, samples in ran:
            change = self.stages[name].change
            if (before is None) != (change is None):
                return f"the stage {name} has no change against the stage before, or there is none before"
            if (
                before is not None
                and change is not None
                and before[1] == samples
                and not _is_gap(change, before[0], mean)
            ):
                return f"the change of the stage {name} is not the difference of the means"
            before = mean, samples
        if not _is_gap(self.whole.change, ran[0][1], ran[-1][1]):
            return "the change from the first to the last stage is not the difference of their means"
        if self.lost_at != next(iter(self.lost), None):
            return "lost_at is not the stage with the largest drop that can be told from zero"
        return None

    def _ran(self) -> Iterator[tuple[StageName, float, int]]:
        """Yield the mean and the samples of each stage that ran, in their order."""
        for name in STAGES:
            row = self.stages.get(name)
            if row is not None and row.mean is not None and row.samples is not None:
                yield name, row.mean, row.samples


def _is_gap(change: float, before: float, after: float) -> bool:
    return abs(after - before - change) <= _MEANS_ROUNDING * max(1, abs(after), abs(before))
