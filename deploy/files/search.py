"""Files about what is searched: the space, its costs, the budget, and the engines that were measured for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec

from calib.files.storage import AboveZero, Amount, Count, FileRecord, Positive, Record, Sha256
from smpq.files import FormatText, Interval, PolicyFile
from smpq.problem.budget import Budget, Limit

MOST_ENGINES = 10_000
"""That are measured for one budget on one machine. It would take days."""


class CalibrationFile(FileRecord, frozen=True, kw_only=True):
    """`calibration.json`: the hash of the rounded weights and ranges that the run began with, and what they were
    computed with.
    """

    NAME = "calibration.json"
    MADE_BY = "smpq score"

    digest: Sha256
    threads: Positive
    versions: dict[str, str]


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


class SpaceFile(FileRecord, frozen=True, kw_only=True):
    """`space.json`: what may be chosen. `refused` maps "group: format" to the reason; `policies` counts the choices."""

    NAME = "space.json"
    MADE_BY = "smpq score"
    VERSION = 2

    groups: dict[str, GroupRow]
    joins: tuple[JoinRow, ...]
    reference: FormatText
    policies: Annotated[int, msgspec.Meta(ge=1)]
    skipped: tuple[SkippedRow, ...]
    refused: dict[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        _once([unit.path for row in self.groups.values() for unit in row.units], "the layer")
        _once([*self.groups, *(join.name for join in self.joins)], "the group or join")
        for name, row in self.groups.items():
            _once(row.formats, f"the format of {name}")
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


class BudgetFile(FileRecord, frozen=True, kw_only=True):
    """`budget.json`: the budget that policy.json was chosen for, as a person writes it."""

    NAME = "budget.json"
    MADE_BY = "smpq solve"

    budget: str

    def __post_init__(self) -> None:
        super().__post_init__()
        Budget.from_text(self.budget)


class ObservedRow(Record, frozen=True, kw_only=True):
    """A measured engine: its time as a ratio to the float engine's."""

    policy: PolicyFile
    ratio: AboveZero
    standard_error: Amount


class RefusedRow(Record, frozen=True, kw_only=True):
    """A policy of which the runtime makes no engine, its reason, and the (group, format) pairs that it blames."""

    policy: PolicyFile
    reason: str
    blamed: tuple[tuple[str, FormatText], ...] = ()

    def __post_init__(self) -> None:
        _check_blame(self.policy, self.blamed)


class MachineRows(Record, frozen=True, kw_only=True):
    """What one machine has measured; `float_ms` is the float engine's time for one batch."""

    float_ms: AboveZero | None = None
    observations: Annotated[tuple[ObservedRow, ...], msgspec.Meta(max_length=MOST_ENGINES)] = ()
    refusals: Annotated[tuple[RefusedRow, ...], msgspec.Meta(max_length=MOST_ENGINES)] = ()

    def __post_init__(self) -> None:
        policies = [*(row.policy for row in self.observations), *(row.policy for row in self.refusals)]
        _once([_key(policy) for policy in policies], "the policy")


class ObservationsFile(FileRecord, frozen=True, kw_only=True):
    """`observations.json`: measured engines by machine, all of the model and data with this fingerprint."""

    NAME = "observations.json"
    MADE_BY = "smpq measure"
    VERSION = 4

    fingerprint: str
    machines: dict[str, MachineRows]


class StepRow(Record, frozen=True, kw_only=True):
    """One engine of the loop: what was predicted for it before it was built, and what was measured, or why it was
    refused.

    `predicted_from` counts the engines that the prediction was made from.
    """

    label: str
    policy: PolicyFile
    predicted: float
    predicted_interval: Interval
    predicted_from: Count
    measured: AboveZero | None = None
    standard_error: Amount | None = None
    measured_interval: Interval | None = None
    refused: str | None = None
    blamed: tuple[tuple[str, FormatText], ...] = ()
    met: bool

    def __post_init__(self) -> None:
        known = [part is not None for part in (self.measured, self.standard_error, self.measured_interval)]
        if any(known) != all(known) or all(known) == (self.refused is not None):
            raise ValueError("a step is either measured, with its standard error and interval, or refused")
        if self.refused is not None and self.met:
            raise ValueError("an engine that was refused meets no budget")
        if self.predicted not in self.predicted_interval:
            raise ValueError("a prediction lies in its interval")
        measured, ends, error = self.measured, self.measured_interval, self.standard_error
        if measured is not None and ends is not None and error is not None and not ends.is_around(measured, error):
            raise ValueError("the measured interval is the ratio with 1.96 standard errors on either side")
        _check_blame(self.policy, self.blamed)
        if self.refused is None and self.blamed:
            raise ValueError("an engine that was measured has nothing to blame")


class FinalistRow(Record, frozen=True, kw_only=True):
    """A policy that is measured to meet the limit: its value on the samples of the search, and on others where there
    are enough.
    """

    policy: PolicyFile
    value: float
    unseen_value: float | None


class OutcomeRow(Record, frozen=True, kw_only=True):
    """What a search came to, why it ended, and the policies that it chose among, the best one first."""

    policy: PolicyFile
    value: float
    met: bool
    stop_reason: str
    finalists: tuple[FinalistRow, ...]

    def __post_init__(self) -> None:
        if self.met != bool(self.finalists):
            raise ValueError("a budget is met where there are finalists")
        if self.finalists and (self.finalists[0].policy, self.finalists[0].value) != (self.policy, self.value):
            raise ValueError("the first finalist is what the search came to")
        _once([_key(row.policy) for row in self.finalists], "the finalist")


class LoopRow(Record, frozen=True, kw_only=True):
    """One search over measured engines: for which budget, on which machine, what was known before it, and its steps so
    far.

    `limit_ratio` is the limit as a ratio to the float engine; `outcome` is None while the search is under way.
    """

    budget: str
    machine: str
    limit_ratio: AboveZero
    known: MachineRows
    steps: Annotated[tuple[StepRow, ...], msgspec.Meta(max_length=MOST_ENGINES)] = ()
    outcome: OutcomeRow | None = None

    def __post_init__(self) -> None:
        limit = latency_limit(self.budget)
        if not limit.relative:  # then it is for the float engine's time, which is measured again and again
            return
        if self.limit_ratio != limit.value:
            raise ValueError(f"the limit {self.limit_ratio:.6g} is not that of the budget {self.budget}")
        for step in self.steps:
            measured, error = step.measured, step.standard_error
            if measured is not None and error is not None and step.met != (measured + 1.96 * error <= limit.value):
                raise ValueError(
                    f"an engine meets the budget when the upper end of its interval is at most {limit.value:.6g}"
                )


class LoopFile(FileRecord, frozen=True, kw_only=True):
    """`loop.json`: the searches over measured engines, the last one at the end; written after each step."""

    NAME = "loop.json"
    MADE_BY = "smpq run"
    VERSION = 2

    searches: tuple[LoopRow, ...] = ()


ModelName = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
"""The first digits of the hash of a model's file."""


class CandidateRow(Record, frozen=True, kw_only=True):
    """An engine of a bundle: which policy it is, and what was predicted for it."""

    label: str
    predicted: float
    predicted_interval: Interval
    predicted_from: Count
    policy: PolicyFile

    def __post_init__(self) -> None:
        if self.predicted not in self.predicted_interval:
            raise ValueError("a prediction lies in its interval")


class BundleFile(FileRecord, frozen=True, kw_only=True):
    """`bundle.json`: the engines of the last bundle, by the name of their model."""

    NAME = "bundle.json"
    MADE_BY = "smpq bundle"

    budget: str
    candidates: Annotated[dict[ModelName, CandidateRow], msgspec.Meta(max_length=MOST_ENGINES)]

    def __post_init__(self) -> None:
        super().__post_init__()
        latency_limit(self.budget)
        _once([_key(row.policy) for row in self.candidates.values()], "the policy")


def latency_limit(budget: str) -> Limit:
    """Return the limit on latency; ValueError or UserError when a budget has none or is none."""
    limit = Budget.from_text(budget).limit("latency")
    if limit is None:
        raise ValueError("the loop needs a latency budget")
    return limit


def _key(policy: PolicyFile) -> str:
    return f"{sorted(policy.policy.items())} {sorted(policy.float_joins)}"


def _once(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name} is there twice")
        seen.add(name)


def _check_blame(policy: PolicyFile, blamed: Sequence[tuple[str, str]]) -> None:
    _once([group for group, _ in blamed], "the blame of")
    for group, chosen in blamed:
        if policy.policy.get(group) != chosen:
            raise ValueError(f"blames {group} in {chosen}, which is not in the policy")
