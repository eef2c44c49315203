"""`curve.json`: engines across the whole range of a run, what each takes and how accurate it is."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from calib.files.storage import AboveZero, Amount, FileRecord, Positive, Record, Sha256
from deploy.files.search import check_once
from smpq.files import Interval, PolicyFile

PointKind = Literal["found", "uniform", "float", "quantize_static"]
PointName = Annotated[str, msgspec.Meta(pattern=r"^P[1-9][0-9]{0,4}$")]
MOST_ENGINES = 16
"""Of a curve, besides the float model's, where nobody asks for more."""
MOST_POINTS = 1_000
_ROUNDING = 1e-6


class JudgedPoint(Record, frozen=True, kw_only=True):
    """A point's metric on the evaluation data with its 95 % interval, in the metric's unit.

    `change` is the difference to the float model, sample by sample, with its interval. `measured_on` says whether the
    engine itself ran, or the fake-quantised model in its place.
    """

    accuracy: float
    interval: Interval
    change: float
    change_interval: Interval
    measured_on: Literal["engine", "fake_quant"]

    def __post_init__(self) -> None:
        if self.accuracy not in self.interval or self.change not in self.change_interval:
            raise ValueError("a figure lies in its interval")


class PointRow(Record, frozen=True, kw_only=True):
    """An engine of the curve: its cost as a share of `float_cost` with a 95 % interval, and its accuracy.

    1. `kind`: `uniform` has one format wherever it is offered, `float` is the baseline, `quantize_static` is what
       onnxruntime makes of the float model by itself, which is no policy; all others were `found`.
    2. `ratio_interval` and `ms` (of one batch) are None where engines are not timed.
    3. `value` is what the search goes by, on calibration data; None without a policy.
    4. `judged` is None as long as the evaluation data have not been through it.
    5. `dominated`: another point is as cheap and as accurate, and better in one of the two, intervals aside.
    """

    name: PointName
    kind: PointKind
    policy: PolicyFile | None
    ratio: AboveZero
    ratio_interval: Interval | None
    ms: AboveZero | None
    size_bytes: Amount | None
    value: float | None
    judged: JudgedPoint | None
    dominated: bool

    def __post_init__(self) -> None:
        if (self.policy is None) != (self.kind == "quantize_static") or (self.policy is None) != (self.value is None):
            raise ValueError("every engine but that of quantize_static has a policy with a value")
        if (self.ms is None) != (self.ratio_interval is None):
            raise ValueError("an engine that was timed has milliseconds, and a ratio with an interval")
        if self.ratio_interval is not None and self.ratio not in self.ratio_interval:
            raise ValueError("a ratio lies in its interval")
        if self.kind == "float" and (
            (self.ms is not None and self.ratio != 1.0) or (self.judged is not None and self.judged.change != 0.0)
        ):
            raise ValueError("the float engine is what the others are compared with")


class CurveFile(FileRecord, frozen=True, kw_only=True):
    """`curve.json`: the points, the cheapest first; a name that was given stays.

    `cost` is the latency that `machine` measured, in milliseconds of a batch, or the size in bytes where engines cannot
    be timed, for the reason `not_timed`. `float_cost` is the time of the float engine, or the size of the model in
    fp32, as a budget on the size counts it: a float engine in fp16 then has a ratio of a half. `evaluation` is a hash
    of the data that all points are judged on. `stop_reason` says why there are no more.
    """

    NAME = "curve.json"
    MADE_BY = "smpq curve"
    VERSION = 2

    cost: Literal["latency", "size"]
    machine: str | None
    not_timed: str | None
    float_cost: AboveZero
    metric: str
    samples: Positive
    evaluation: Sha256
    stop_reason: str
    points: Annotated[tuple[PointRow, ...], msgspec.Meta(max_length=MOST_POINTS)]

    def __post_init__(self) -> None:
        super().__post_init__()
        timed = self.cost == "latency"
        if timed != (self.machine is not None) or timed != (self.not_timed is None):
            raise ValueError("a latency was measured on a machine; a size stands for it, for a reason")
        check_once([point.name for point in self.points], "the point")
        check_once([point.policy.content for point in self.points if point.policy is not None], "the policy")
        if sum(point.kind == "float" for point in self.points) != 1:
            raise ValueError("one point is the float model")
        if [point.ratio for point in self.points] != sorted(point.ratio for point in self.points):
            raise ValueError("the cheapest point comes first")
        for point in self.points:
            self._check(point)

    def _check(self, point: PointRow) -> None:
        cost = point.ms if self.cost == "latency" else point.size_bytes
        if cost is None or abs(cost / self.float_cost / point.ratio - 1) > _ROUNDING:
            raise ValueError(f"the ratio of {point.name} does not follow from its cost and float_cost")
        if point.dominated != is_dominated(point, self.points):
            raise ValueError(f"whether {point.name} is dominated does not follow from the figures")

    @property
    def complete(self) -> bool:
        """Whether the evaluation data have been through every point."""
        return all(point.judged is not None for point in self.points)


def is_dominated(point: PointRow, others: tuple[PointRow, ...]) -> bool:
    """Whether one of `others` is as cheap and as accurate as a point, and better in one of the two."""
    mine = point.judged
    if mine is None:
        return False
    return any(
        other.judged is not None
        and other.ratio <= point.ratio
        and other.judged.accuracy >= mine.accuracy
        and (other.ratio < point.ratio or other.judged.accuracy > mine.accuracy)
        for other in others
    )
