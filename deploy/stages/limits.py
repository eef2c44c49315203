"""The limits of the budget beside what the engine reaches, from the files of a run."""

from __future__ import annotations

from calib.errors import UserError
from deploy.files.report import LimitRow
from deploy.files.search import CostsFile
from deploy.stages.recorded import COST_UNITS, Recorded
from smpq.files import Interval
from smpq.problem.budget import LOSSES, Limit


def limit_rows(read: Recorded) -> tuple[LimitRow, ...]:
    """Return a row for each limit of the budget; UserError when the files of the run contradict each other."""
    limits = read.budget.limits if read.budget is not None else ()
    return tuple(_row(read, limit) for limit in limits)


def _row(read: Recorded, limit: Limit) -> LimitRow:
    if limit.cost in LOSSES:
        return _loss_row(read, limit)
    return _latency_row(read, limit) if limit.cost == "latency" else _counted_row(read, limit)


def _counted_row(read: Recorded, limit: Limit) -> LimitRow:
    model = read.costs[limit.cost]
    unit = "x" if limit.relative else COST_UNITS[limit.cost]
    total = model.total(read.policy)
    if limit.relative and not model.float_total:
        file = read.run.file(CostsFile.NAME)
        raise UserError(
            f"{file} gives the float model no {limit.cost}, of which {limit} is a share: use {CostsFile.MADE_BY} again"
        )
    reached = total / (model.float_total if limit.relative else 1.0)
    met = total <= limit.absolute(model.float_total) * (1 + 1e-9)
    return LimitRow(cost=limit.cost, limit=limit.value, reached=reached, unit=unit, met=met)


def _latency_row(read: Recorded, limit: Limit) -> LimitRow:
    unit, found = "x" if limit.relative else "ms", read.latency
    if found is None:
        return LimitRow(cost=limit.cost, limit=limit.value, reached=None, unit=unit, met=None)
    scale = 1.0 if limit.relative else found.float_ms
    interval = Interval(found.interval.low * scale, found.interval.high * scale)
    met = interval.high <= limit.value
    return LimitRow(
        cost=limit.cost, limit=limit.value, reached=found.ratio * scale, unit=unit, met=met, interval=interval
    )


def _loss_row(read: Recorded, limit: Limit) -> LimitRow:
    """What the policy was shown to lose before it was chosen; the evaluation data have no say in it."""
    found = read.loss
    if found is None:
        return LimitRow(cost=limit.cost, limit=limit.value, reached=None, unit="x" if limit.relative else "", met=None)
    return LimitRow(
        cost=limit.cost,
        limit=found.limit,
        reached=found.mean,
        unit=found.unit,
        met=found.met,
        interval=found.interval,
    )
