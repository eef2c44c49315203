"""What becomes of an engine that was asked for: the latency model learns its time, or it was refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from calib.formats.format import Format
from deploy.devices.base import Result
from deploy.files.loop import MachineRows, ObservationRow, RefusedRow
from deploy.runner.state import QUIET
from smpq.problem.policy import Policy, Space

LASTING = 1.96 + 0.84 * 2**0.5
"""How many standard errors a ratio lies below a limit where another measurement of the same error has the upper end of
its 95 % interval below it in four of five cases: the two differ by the square root of two such errors.
"""


@dataclass(frozen=True)
class Observation:
    """The latency of one policy's engine as a ratio to the float engine, and the standard error of the ratio.

    `float_ms` is the fastest time of the float engine that was known then, None where that is not known; `slowdown` is
    what it took meanwhile by its fastest, which the standard error includes. `again` says that the policy was measured
    once before. `doubtful` ones are worth another measurement (`deploy.latency.doubts`).
    """

    policy: Policy
    ratio: float
    standard_error: float
    float_ms: float | None = None
    again: bool = False
    doubtful: bool = False
    slowdown: float = 1.0

    @property
    def upper(self) -> float:
        """The upper end of the 95 % interval."""
        return self.ratio + 1.96 * self.standard_error

    def lasts(self, limit: float) -> bool:
        """Whether another such measurement would likely be within a limit too, with its interval (`LASTING`)."""
        return self.ratio + LASTING * self.standard_error <= limit

    def confirmed(self, limit: float) -> bool:
        """Whether it is no luck that the policy was measured to be within a limit: it lasts, or was so
        when it was measured once more.
        """
        return self.lasts(limit) or (self.again and self.upper <= limit)

    def unsure(self, limit: float) -> bool:
        """Whether the policy may be within a limit, and other work kept its first measurement from telling so: it is
        within it, or a standard error beyond.
        """
        disturbed = self.slowdown > 1 + QUIET and not self.again
        near = self.ratio - self.standard_error <= limit and not self.lasts(limit)
        return self.doubtful or (disturbed and near)


@dataclass(frozen=True)
class Refusal:
    """A policy whose engine does not build: the runtime's reason, and the (group, format) pairs that it blames. Often
    it blames none.
    """

    policy: Policy
    reason: str
    blamed: tuple[tuple[str, Format], ...] = ()


Observe: TypeAlias = Callable[[Policy], "Observation | Refusal"]
"""Builds the engine of a policy and times it."""


def observation_of(policy: Policy, result: Result) -> Observation:
    """Return what the latency model learns from a result; only of an engine that was built. The wider side of a
    lopsided interval counts: an engine within a limit here is within it by the interval itself too.
    """
    assert result.ratio is not None
    assert result.ratio_interval is not None
    low, high = result.ratio_interval
    slowdown = result.slowdown or 1.0
    float_ms = result.float_ms / slowdown if result.float_ms is not None else None
    error = max(high - result.ratio, result.ratio - low) / 1.96
    return Observation(policy, result.ratio, error, float_ms, slowdown=slowdown)


def machine_rows(space: Space, found: Sequence[Observation | Refusal], float_ms: float | None = None) -> MachineRows:
    """Return the file form of what is known of one machine."""
    return MachineRows(
        float_ms=float_ms,
        observations=tuple(
            ObservationRow(
                policy=each.policy.to_file(space.groups),
                ratio=each.ratio,
                standard_error=each.standard_error,
                float_ms=each.float_ms,
                slowdown=each.slowdown,
                again=each.again,
            )
            for each in found
            if isinstance(each, Observation)
        ),
        refusals=tuple(
            RefusedRow(policy=each.policy.to_file(space.groups), reason=each.reason, blamed=blamed_rows(each))
            for each in found
            if isinstance(each, Refusal)
        ),
    )


def blamed_rows(refusal: Refusal) -> tuple[tuple[str, str], ...]:
    """Return the file form of what a refusal blames."""
    return tuple((group, str(chosen)) for group, chosen in refusal.blamed)


def observations_of(rows: MachineRows, space: Space) -> list[Observation]:
    """Read back the engines that were timed."""
    return [
        Observation(
            Policy.from_file(row.policy, space),
            row.ratio,
            row.standard_error,
            row.float_ms,
            again=row.again,
            slowdown=row.slowdown,
        )
        for row in rows.observations
    ]


def refusals_of(rows: MachineRows, space: Space) -> list[Refusal]:
    """Read back what was refused."""
    return [
        Refusal(
            Policy.from_file(row.policy, space),
            row.reason,
            tuple((group, Format.from_text(text)) for group, text in row.blamed),
        )
        for row in rows.refusals
    ]
