"""The files of a search: their content as typed records. Nothing here needs torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from calib.files.storage import AboveZero, Amount, Count, FileRecord, Fraction, Positive, Record

FormatText = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9.]{0,63}$")]
"""A format as a program writes it; a person may write more forms (`calib.formats.format.Format.from_text`)."""

SHARES = ("top-1", "top-5", "accuracy")
"""Metrics that are shares of samples: written in percent, their changes in points of 0.01."""


class Interval(Record, frozen=True, array_like=True):
    """Two ends, in the unit of what they enclose; a list of two numbers in the file."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low:.6g} to {self.high:.6g}: the lower end comes first")

    def __contains__(self, value: float) -> bool:
        return self.low - self._slack <= value <= self.high + self._slack

    @property
    def _slack(self) -> float:
        """What rounding may come to."""
        return 1e-9 * max(abs(self.low), abs(self.high))

    def is_around(self, value: float, standard_error: float) -> bool:
        """Whether this is the 95 % interval of a normal distribution."""
        other = Interval.around(value, standard_error)
        return max(abs(self.low - other.low), abs(self.high - other.high)) <= self._slack

    @classmethod
    def around(cls, value: float, standard_error: float) -> Interval:
        """Return the 95 % interval of a normal distribution."""
        return cls(value - 1.96 * standard_error, value + 1.96 * standard_error)


def _same(one: float, other: float, scale: float = 1.0) -> bool:
    """Whether two numbers differ by rounding at most."""
    return abs(one - other) <= 1e-6 * max(abs(other), scale)


class PolicyFile(FileRecord, frozen=True, kw_only=True):
    """`policy.json`: a format for every layer, by module path, and the joins that stay in float. May be edited by
    hand.
    """

    NAME = "policy.json"
    MADE_BY = "smpq solve"

    policy: dict[str, str]
    float_joins: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """The same text for equal policies."""
        return f"{sorted(self.policy.items())} {sorted(self.float_joins)}"


Change = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
"""Of a value: beyond, its square is no number any more."""


class ScoreRow(Record, frozen=True, kw_only=True):
    """`smpq.scoring.scores.Score` of one (group, format)."""

    value: Change
    standard_error: Annotated[float, msgspec.Meta(ge=0, le=1e30)]
    interval: Interval
    samples: Count
    alone: Change
    marginals: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not self.interval.is_around(self.value, self.standard_error):
            raise ValueError("the interval of a score is its value with 1.96 standard errors on either side")


class PairRow(Record, frozen=True, array_like=True):
    """What two moves of different groups are worth together, besides the values of both; a list in the file."""

    one: str
    one_format: FormatText
    other: str
    other_format: FormatText
    value: Change

    def __post_init__(self) -> None:
        if self.one == self.other:
            raise ValueError("a pair is of two groups")


class NearRow(Record, frozen=True, kw_only=True):
    """A policy by group, and in how many groups another one may differ from it."""

    policy: dict[str, FormatText]
    changes: Positive


class ScoresFile(FileRecord, frozen=True, kw_only=True):
    """`scores.json`: what each format contributes, by group and format, and where the numbers came from."""

    NAME = "scores.json"
    MADE_BY = "smpq score"
    VERSION = 4

    method: str
    value: str
    estimator: str
    seed: Count
    evaluations: Count
    permutations: Count
    stop_reason: str
    efficiency_gap: float
    scores: dict[str, dict[FormatText, ScoreRow]]
    pairs: tuple[PairRow, ...]
    near: NearRow | None
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({frozenset(((p.one, p.one_format), (p.other, p.other_format))) for p in self.pairs}) < len(self.pairs):
            raise ValueError("each pair of moves stands once")


Where = Literal["everywhere", "near", "beyond"]
PLACES: dict[Where, str] = {
    "everywhere": "",
    "near": " among those near the plan that they were measured at",
    "beyond": ", which were measured far from it: no plan where they were is within the budget",
}
"""Among which plans one is the best; in words, after "for these scores"."""


class AllocationRow(Record, frozen=True, kw_only=True):
    """The best plan for scores with pairs: its value by them, and a bound on that of any;
    equal where that is proven.
    """

    value: float
    bound: float
    where: Where

    def __post_init__(self) -> None:
        if self.bound < self.value:
            raise ValueError("a bound is not below a value that was found")


class OfPolicy(FileRecord, frozen=True, kw_only=True):
    """A file that was made for one policy: `policy` is its key, with the hash of fine-tuned weights if it has any."""

    policy: str


class StabilityFile(OfPolicy, frozen=True, kw_only=True):
    """`stability.json`: how often each group gets each format when the walks are drawn again."""

    NAME = "stability.json"
    MADE_BY = "smpq solve"
    VERSION = 2
    DECIDED: ClassVar[float] = 0.9

    resamples: Count
    allocation: AllocationRow | None
    undecided: tuple[str, ...]
    frequencies: dict[str, dict[FormatText, Fraction]]

    def __post_init__(self) -> None:
        super().__post_init__()
        for group, row in self.frequencies.items():
            counts = [share * self.resamples for share in row.values()]
            if not _same(sum(counts), self.resamples) or not all(_same(count, round(count)) for count in counts):
                raise ValueError(f"the frequencies of {group} are no shares of {self.resamples} resamples")
        if self.undecided != tuple(
            group for group, row in self.frequencies.items() if max(row.values(), default=0.0) < self.DECIDED
        ):
            raise ValueError(
                f"undecided are the groups that get no format in {100 * self.DECIDED:.0f} % of the resamples"
            )


class ContributionRow(Record, frozen=True, kw_only=True):
    """What one group's format costs in the policy, in units of the value."""

    group: str
    format: FormatText
    value: float
    standard_error: Amount
    interval: Interval
    samples: Count

    def __post_init__(self) -> None:
        if self.value not in self.interval:
            raise ValueError("a contribution lies in its interval")


class ContributionsFile(OfPolicy, frozen=True, kw_only=True):
    """`contributions.json`: Shapley values of the policy itself; `apart` lists the groups in classes that the intervals
    tell apart.
    """

    NAME = "contributions.json"
    MADE_BY = "smpq explain"

    value: str
    total: float
    estimator: str
    evaluations: Count
    seed: Count
    stop_reason: str
    contributions: tuple[ContributionRow, ...]
    apart: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        groups, values = [row.group for row in self.contributions], [row.value for row in self.contributions]
        if not _same(sum(values), self.total, sum(map(abs, values))):
            raise ValueError("the contributions do not sum to their total")
        if sorted(groups) != sorted(name for row in self.apart for name in row) or len(set(groups)) < len(groups):
            raise ValueError("each group contributes once, and stands once in apart")


class OperationRow(Record, frozen=True, kw_only=True):
    """The accumulated Shapley value of one operation of the supernet, by walk and by part of the samples."""

    group: str
    side: str
    operation: str
    score: float
    standard_error: Amount
    mean: float
    mean_standard_error: Amount
    walks: tuple[float, ...]
    marginals: tuple[float, ...]
    parts: tuple[float, ...]
    mean_parts: tuple[float, ...]


class EstimateRow(Record, frozen=True, kw_only=True):
    """All operations' values, after `updates` estimates with `walks` walks together, `truncated` of them cut."""

    updates: Count
    truncated: Count
    evaluations: Count
    walks: Count
    operations: tuple[OperationRow, ...]

    def __post_init__(self) -> None:
        if (bool(self.updates) != bool(self.walks) or (self.updates and self.walks % self.updates)
                or self.truncated > self.walks):  # fmt: skip
            raise ValueError(f"{self.updates} updates with {self.walks} walks, {self.truncated} of them cut")
        if any(len(row.walks) != self.walks or len(row.marginals) != self.walks for row in self.operations):
            raise ValueError(f"an operation has another number of walks than {self.walks}")


class EpochSeconds(Record, frozen=True, kw_only=True):
    """What an epoch of a supernet took."""

    training: Amount
    shapley: Amount


class EpochEstimate(Record, frozen=True, kw_only=True):
    """`smpq.scoring.estimators.result.Estimate` after one epoch, without its covariance."""

    schema: Count
    estimator: str
    seed: Count
    evaluations: Count
    truncated: Count
    stop_reason: str
    values: tuple[float, ...]
    standard_errors: tuple[Amount, ...]
    degrees_of_freedom: tuple[AboveZero | None, ...]
    covariance: None
    samples: tuple[Count, ...]


class EpochRow(Record, frozen=True, kw_only=True):
    """One epoch of a supernet: mean loss, expected bit operations a MAC, and the Shapley values by value if they were
    estimated.
    """

    epoch: Positive
    loss: float
    complexity: Amount
    seconds: EpochSeconds
    estimates: dict[str, EpochEstimate]
