"""Files about what is searched: the space, its costs and the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from calib.files.storage import AboveZero, Count, FileRecord, Positive, Record, Sha256
from smpq.files import FormatText, Interval, OfPolicy
from smpq.problem.budget import Budget


class CalibrationFile(FileRecord, frozen=True, kw_only=True):
    """`calibration.json`: the hash of the rounded weights and ranges that the run began with, what they were computed
    with, and what was noted about them.
    """

    NAME = "calibration.json"
    MADE_BY = "smpq score"

    digest: Sha256
    threads: Positive
    versions: dict[str, str]
    notes: tuple[str, ...] = ()


class UnitRow(Record, frozen=True, kw_only=True):
    """`calib.network.units.Unit`."""

    path: str
    operator: str
    weight: str
    bias: str | None
    weight_shape: tuple[Positive, ...]
    parameters: Positive
    macs: Count
    calls: tuple[str, ...]
    inputs: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    gathers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.parameters != math.prod(self.weight_shape):
            raise ValueError(f"{self.parameters} parameters, and a weight of {math.prod(self.weight_shape)}")


class GroupRow(Record, frozen=True, kw_only=True):
    """The units of a group and the formats that it may have."""

    units: Annotated[tuple[UnitRow, ...], msgspec.Meta(min_length=1)]
    formats: Annotated[tuple[FormatText, ...], msgspec.Meta(min_length=1)]


class JoinRow(Record, frozen=True, kw_only=True):
    """`smpq.problem.policy.Join`."""

    name: str
    operands: tuple[str, ...]
    readers: tuple[str, ...]


class SkippedRow(Record, frozen=True, kw_only=True):
    """A layer that stays in float, and why."""

    path: str
    operator: str
    reason: str


class SizesRow(Record, frozen=True, kw_only=True):
    """Sizes of one sample of an input: the usual ones, which are timed, and the least and most of each axis."""

    least: tuple[Count, ...]
    usual: tuple[Count, ...]
    most: tuple[Count, ...]

    def __post_init__(self) -> None:
        if not len(self.least) == len(self.usual) == len(self.most):
            raise ValueError("sizes of one input have as many axes")
        for low, middle, high in zip(self.least, self.usual, self.most, strict=True):
            if not low <= middle <= high:
                raise ValueError("the usual size of an axis lies between its least and its most")


class SpaceFile(FileRecord, frozen=True, kw_only=True):
    """`space.json`: what may be chosen. `refused` maps "group: format" to the reason; `policies` counts the choices.
    `sizes` are those of the inputs, where an axis besides the batch has several.
    """

    NAME = "space.json"
    MADE_BY = "smpq score"
    VERSION = 3

    groups: dict[str, GroupRow]
    joins: tuple[JoinRow, ...]
    reference: FormatText
    policies: Annotated[int, msgspec.Meta(ge=1)]
    skipped: tuple[SkippedRow, ...]
    refused: dict[str, str]
    sizes: dict[str, SizesRow]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_once([unit.path for row in self.groups.values() for unit in row.units], "the layer")
        check_once([*self.groups, *(join.name for join in self.joins)], "the group or join")
        for name, row in self.groups.items():
            check_once(row.formats, f"the format of {name}")
            if row.units[0].path != name:
                raise ValueError(f"the group {name} is named after its first layer, {row.units[0].path}")
        if self.policies != math.prod(len(row.formats) for row in self.groups.values()):
            raise ValueError("policies is the product of the numbers of formats")
        known = set(self.groups)
        for join in self.joins:  # in graph order: a join reads groups and joins further up, and is read by any
            if not known.issuperset(join.operands) or not {
                *self.groups,
                *(each.name for each in self.joins),
            }.issuperset(join.readers):
                raise ValueError(f"the join {join.name} names a group or join that does not exist")
            known.add(join.name)
        for key in self.refused:
            if key.rpartition(": ")[0] not in self.groups:
                raise ValueError("refused names a group that does not exist")


Cost = Annotated[float, msgspec.Meta(ge=0, le=1e30)]
_SMALLEST_COST = 1e-9


class CostRow(Record, frozen=True, kw_only=True):
    """A cost that needs no measurement, in its unit: a fixed part, and one for each (group, format)."""

    fixed: Cost
    float_total: Cost
    parts: dict[str, dict[FormatText, Cost]]

    def __post_init__(self) -> None:
        if 0 < self.float_total < _SMALLEST_COST:
            raise ValueError(f"the float model costs {self.float_total:.3g}, less than anything real")


class CostsFile(FileRecord, frozen=True, kw_only=True):
    """`costs.json`: the costs by name (size in bytes, bit operations, bits a weight)."""

    NAME = "costs.json"
    MADE_BY = "smpq score"

    costs: dict[str, CostRow]


Judged = Literal["selection", "calibration", "synthetic"]
"""The batches that a loss is decided on."""


class LossFile(OfPolicy, frozen=True, kw_only=True):
    """`loss.json`: what the chosen policy loses against the float model, where the budget limits that.

    `limit`, `mean` and `interval` (95 %) are in `unit`: points of the task's metric, or nats of divergence. `data` are
    the task's held-out `selection` batches, the calibration batches where it has none, or the synthetic ones of a run
    without samples of the task.
    """

    NAME = "loss.json"
    MADE_BY = "smpq run"

    budget: str
    limit: AboveZero
    unit: Literal["points", "nats"]
    mean: float
    interval: Interval
    samples: Positive
    data: Judged

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = Budget.from_text(self.budget).loss
        if limit is None or (self.unit == "nats") != (limit.cost == "kl"):
            raise ValueError(f"the budget {self.budget} limits no loss in {self.unit}")
        if not limit.relative and limit.value != self.limit:
            raise ValueError(f"the limit {self.limit:.6g} is not that of the budget {self.budget}")
        if self.mean not in self.interval:
            raise ValueError("the mean lies in its interval")

    @property
    def met(self) -> bool:
        """Whether the upper end of the interval is within the limit."""
        return self.interval.high <= self.limit


class BudgetFile(FileRecord, frozen=True, kw_only=True):
    """`budget.json`: the budget that policy.json was chosen for, as a person writes it."""

    NAME = "budget.json"
    MADE_BY = "smpq solve"

    budget: str

    def __post_init__(self) -> None:
        super().__post_init__()
        Budget.from_text(self.budget)


def check_once(names: Sequence[str], what: str) -> None:
    """Raise ValueError when a name is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name} is there twice")
        seen.add(name)
