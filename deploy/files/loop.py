"""Files about the engines that are measured for a budget: what machines found, the searches, the last bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from calib.files.storage import AboveZero, Amount, AtLeastOne, Count, FileRecord, Record, Sha256
from deploy.files.search import check_once
from smpq.files import FormatText, Interval, PolicyFile
from smpq.problem.budget import Budget, Limit

MOST_ENGINES = 10_000
"""That are measured for one budget on one machine. It would take days."""


class ObservationRow(Record, frozen=True, kw_only=True):
    """A measured engine: its time as a ratio to the float engine's, and the fastest of that which was known then.

    `slowdown` is what the float engine took meanwhile by its fastest. `again` says that an earlier row of the same
    policy was replaced.
    """

    policy: PolicyFile
    ratio: AboveZero
    standard_error: Amount
    float_ms: AboveZero | None
    slowdown: AtLeastOne = 1.0
    again: bool = False


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
    observations: Annotated[tuple[ObservationRow, ...], msgspec.Meta(max_length=MOST_ENGINES)] = ()
    refusals: Annotated[tuple[RefusedRow, ...], msgspec.Meta(max_length=MOST_ENGINES)] = ()

    def __post_init__(self) -> None:
        policies = [*(row.policy for row in self.observations), *(row.policy for row in self.refusals)]
        check_once([policy.content for policy in policies], "the policy")


class ObservationsFile(FileRecord, frozen=True, kw_only=True):
    """`observations.json`: measured engines by machine, all of the model and data with this fingerprint."""

    NAME = "observations.json"
    MADE_BY = "smpq measure"
    VERSION = 5

    fingerprint: str
    machines: dict[str, MachineRows]


class StepRow(Record, frozen=True, kw_only=True):
    """One engine of the loop: what was predicted for it before it was built, and what was measured, or why it was
    refused.

    `predicted_from` counts the engines that the prediction was made from. `slowdown` is what the float engine took
    meanwhile by its fastest.
    """

    label: str
    policy: PolicyFile
    predicted: float
    predicted_interval: Interval
    predicted_from: Count
    measured: AboveZero | None = None
    standard_error: Amount | None = None
    measured_interval: Interval | None = None
    float_ms: AboveZero | None = None
    slowdown: AtLeastOne = 1.0
    refused: str | None = None
    blamed: tuple[tuple[str, FormatText], ...] = ()
    met: bool

    def __post_init__(self) -> None:
        known = [part is not None for part in (self.measured, self.standard_error, self.measured_interval)]
        if self.float_ms is not None and self.measured is None:
            raise ValueError("the float engine is timed beside an engine that was measured")
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
        check_once([row.policy.content for row in self.finalists], "the finalist")


SLOWEST = 1000.0
"""The limit, as a ratio to the float engine, where any engine is of use. With a limit on the loss alone it is 1, since
then the float model is an answer; not where another limit, as on the size, rules that out.
"""


class LoopRow(Record, frozen=True, kw_only=True):
    """One search over measured engines: for which budget, on which machine, what was known before it, and its steps so
    far.

    `limit_ratio` is the limit as a ratio to the float engine, `decided_on` the hash of the batches that a limit on the
    loss is decided on; `outcome` is None while the search is under way. `stands`
    says whether the run went on with what the search came to, or searched again since the thorough measurement of that
    engine overruled it; None before that is known.
    """

    budget: str
    machine: str
    limit_ratio: AboveZero
    known: MachineRows
    steps: Annotated[tuple[StepRow, ...], msgspec.Meta(max_length=MOST_ENGINES)] = ()
    outcome: OutcomeRow | None = None
    stands: bool | None = None
    decided_on: Sha256 | None = None

    def __post_init__(self) -> None:
        if self.stands is not None and self.outcome is None:
            raise ValueError("a search that is under way neither stands nor was overruled")
        budget = Budget.from_text(self.budget)
        latency = budget.limit("latency")
        if latency is None and budget.loss is not None:
            limits = (1.0, SLOWEST) if budget.costs else (1.0,)
        else:
            limits = ((latency or latency_limit(self.budget)).value,)
        if latency is not None and not latency.relative:  # then it is for the float engine's time, measured each time
            return
        if self.limit_ratio not in limits:
            raise ValueError(f"the limit {self.limit_ratio:.6g} is not that of the budget {self.budget}")
        for step in self.steps:
            measured, error = step.measured, step.standard_error
            if measured is not None and error is not None and step.met != (measured + 1.96 * error <= self.limit_ratio):
                raise ValueError(
                    f"an engine meets the budget when the upper end of its interval is at most {self.limit_ratio:.6g}"
                )


class LoopFile(FileRecord, frozen=True, kw_only=True):
    """`loop.json`: the searches over measured engines, the last one at the end; written after each step."""

    NAME = "loop.json"
    MADE_BY = "smpq run"
    VERSION = 5

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
        check_once([row.policy.content for row in self.candidates.values()], "the policy")


def latency_limit(budget: str) -> Limit:
    """Return the limit on latency; ValueError or UserError when a budget has none or is none."""
    limit = Budget.from_text(budget).limit("latency")
    if limit is None:
        raise ValueError("the loop needs a latency budget")
    return limit


def _check_blame(policy: PolicyFile, blamed: Sequence[tuple[str, str]]) -> None:
    check_once([group for group, _ in blamed], "the blame of")
    for group, chosen in blamed:
        if policy.policy.get(group) != chosen:
            raise ValueError(f"blames {group} in {chosen}, which is not in the policy")
