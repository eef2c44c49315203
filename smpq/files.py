"""The files of a search: their content as typed records. Nothing here needs torch."""

from __future__ import annotations

from typing import Annotated

import msgspec

from calib.storage import AboveZero, Amount, Count, FileRecord, Fraction, Positive, Record

FormatText = Annotated[str, msgspec.Meta(pattern=r"^(fp16|fp32|w[2-8](a(4|5|6|7|8|16))?(b[0-9]{1,6})?)$")]
"""A format as a program writes it; a person may write more forms (`calib.formats.Format.from_text`)."""


class Interval(Record, frozen=True, array_like=True):
    """Two ends, in the unit of what they enclose; a list of two numbers in the file."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"an interval from {self.low:.6g} to {self.high:.6g}: the lower end comes first")

    @classmethod
    def around(cls, value: float, standard_error: float) -> Interval:
        """Return the 95 % interval of a normal distribution."""
        return cls(value - 1.96 * standard_error, value + 1.96 * standard_error)


class PolicyFile(FileRecord, frozen=True, kw_only=True):
    """`policy.json`: a format for every layer, by module path, and the joins that stay in float. May be edited by hand."""

    NAME = "policy.json"
    MADE_BY = "smpq solve"

    policy: dict[str, str]
    float_joins: tuple[str, ...] = ()


class ScoreRow(Record, frozen=True, kw_only=True):
    """`smpq.scores.Score` of one (group, format)."""

    value: float
    standard_error: Amount
    interval: Interval
    samples: Count
    alone: float
    marginals: tuple[float, ...]


class ScoresFile(FileRecord, frozen=True, kw_only=True):
    """`scores.json`: what each format contributes, by group and format, and where the numbers came from."""

    NAME = "scores.json"
    MADE_BY = "smpq score"
    VERSION = 2

    value: str
    estimator: str
    seed: Count
    evaluations: Count
    permutations: Count
    stop_reason: str
    efficiency_gap: float
    scores: dict[str, dict[FormatText, ScoreRow]]


class OfPolicy(FileRecord, frozen=True, kw_only=True):
    """A file that was made for one policy: `policy` is its key, with the hash of the fine-tuned weights where there are any."""

    policy: str


class StabilityFile(OfPolicy, frozen=True, kw_only=True):
    """`stability.json`: how often each group gets each format when the walks are drawn again."""

    NAME = "stability.json"
    MADE_BY = "smpq solve"

    resamples: Count
    undecided: tuple[str, ...]
    frequencies: dict[str, dict[FormatText, Fraction]]


class ContributionRow(Record, frozen=True, kw_only=True):
    """What one group's format costs in the policy, in units of the value."""

    group: str
    format: FormatText
    value: float
    standard_error: Amount
    interval: Interval
    samples: Count


class ContributionsFile(OfPolicy, frozen=True, kw_only=True):
    """`contributions.json`: Shapley values of the policy itself; `apart` lists the groups in classes that the intervals tell apart."""

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


__all__ = [
    "AboveZero", "Amount", "ContributionRow", "ContributionsFile", "Count", "FormatText", "Interval", "OfPolicy", "PolicyFile", "Positive",
    "ScoreRow", "ScoresFile", "StabilityFile",
]  # fmt: skip
