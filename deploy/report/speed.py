"""Whether an engine is faster than the float one, and whether that was asked for: everything said of it follows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from deploy.files.report import ReportFile
from smpq.files import Interval
from smpq.problem.budget import LOSSES


def faster(interval: Interval) -> Literal["yes", "no", "unknown"]:
    """Say whether an engine is faster, by the 95 % interval of its ratio to the float engine."""
    return "yes" if interval.high < 1 else "no" if interval.low > 1 else "unknown"


def asks_for_speed(costs: Collection[str]) -> bool:
    """Whether a budget with these limits wants the engine to be fast, as one on the loss does; without any it may."""
    return not costs or not {"latency", *LOSSES}.isdisjoint(costs)


def held_by_loss(report: ReportFile) -> bool:
    """Whether the float engine is kept since no faster engine that was measured is shown to lose as little as asked."""
    faster_ones = any(step.measured is not None and step.measured < 1 for step in report.observations)
    return report.is_float and faster_ones and any(limit.cost in LOSSES for limit in report.limits)
