"""Files about what is searched: the space, its costs, the budget, and the engines that were measured for it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from calib.storage import AboveZero, Amount, Count, FileRecord, Positive, Record, Sha256
from smpq.files import FormatText, Interval, PolicyFile


class CalibrationFile(FileRecord, frozen=True, kw_only=True):
    """`calibration.json`: the hash of the rounded weights and ranges that the run began with, and what they were computed with."""

    NAME = "calibration.json"
    MADE_BY = "smpq score"

    digest: Sha256
    threads: Positive
    versions: dict[str, str]


class UnitRow(Record, frozen=True, kw_only=True):
    """`calib.units.Unit`."""

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


class GroupRow(Record, frozen=True, kw_only=True):
    """The units of a group and the formats that it may have."""

    units: Annotated[tuple[UnitRow, ...], msgspec.Meta(min_length=1)]
    formats: Annotated[tuple[FormatText, ...], msgspec.Meta(min_length=1)]


class JoinRow(Record, frozen=True, kw_only=True):
    """`smpq.policy.Join`."""

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


class CostRow(Record, frozen=True, kw_only=True):
    """A cost that needs no measurement, in its unit: a fixed part, and one for each (group, format)."""

    fixed: Amount
    float_total: Amount
    parts: dict[str, dict[FormatText, Amount]]


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


class MachineRows(Record, frozen=True, kw_only=True):
    """What one machine has measured; `float_ms` is the float engine's time for one batch."""

    float_ms: AboveZero | None = None
    observations: tuple[ObservedRow, ...] = ()
    refusals: tuple[RefusedRow, ...] = ()


class MeasurementsFile(FileRecord, frozen=True, kw_only=True):
    """`measurements.json`: measured engines by machine, all of the model and data with this fingerprint."""

    NAME = "measurements.json"
    MADE_BY = "smpq measure"
    VERSION = 4

    fingerprint: str
    machines: dict[str, MachineRows]


class StepRow(Record, frozen=True, kw_only=True):
    """One engine of the loop: what was predicted for it before it was built, and what was measured, or why it was refused.

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


class FinalistRow(Record, frozen=True, kw_only=True):
    """A policy that is measured to meet the limit: its value on the samples of the search, and on others where there are enough."""

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


class LoopRow(Record, frozen=True, kw_only=True):
    """One search over measured engines: for which budget, on which machine, what was known before it, and its steps so far.

    `limit_ratio` is the limit as a ratio to the float engine; `outcome` is None while the search is under way.
    """

    budget: str
    machine: str
    limit_ratio: AboveZero
    known: MachineRows
    steps: tuple[StepRow, ...] = ()
    outcome: OutcomeRow | None = None


class LoopFile(FileRecord, frozen=True, kw_only=True):
    """`loop.json`: the searches over measured engines, the last one at the end; written after each step."""

    NAME = "loop.json"
    MADE_BY = "smpq run"
    VERSION = 2

    searches: tuple[LoopRow, ...] = ()


class CandidateRow(Record, frozen=True, kw_only=True):
    """An engine of a bundle: which policy it is, and what was predicted for it."""

    label: str
    predicted: float
    predicted_interval: Interval
    predicted_from: Count
    policy: PolicyFile


class BundleFile(FileRecord, frozen=True, kw_only=True):
    """`bundle.json`: the engines of the last bundle, by the name of their model."""

    NAME = "bundle.json"
    MADE_BY = "smpq bundle"

    budget: str
    candidates: dict[str, CandidateRow]
