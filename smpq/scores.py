"""What each (group, format) contributes, with its uncertainty and where the number came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calib.errors import UserError
from calib.formats import Format
from smpq.allocate import Values
from smpq.policy import Space
from smpq.shrinkage import shrink

SCHEMA = 2
_FEWEST_TO_SHRINK = 2


@dataclass(frozen=True)
class Score:
    """Change of the value when a group moves from the float format to this one, averaged over contexts.

    In units of the value (nats for `kl`); `standard_error` is that of the mean over `samples` contexts, `alone` the change when
    every other group is float; `marginals` holds the change in each context, in the order of the walks.
    """

    value: float
    standard_error: float
    samples: int
    alone: float
    marginals: tuple[float, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, normal approximation."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error


@dataclass(frozen=True)
class Scores:
    """All scores of one estimation, by group name and format."""

    entries: Mapping[str, Mapping[Format, Score]]
    value_name: str
    estimator: str
    seed: int
    evaluations: int
    permutations: int
    stop_reason: str
    efficiency_gap: float

    def values(self) -> Values:
        """Return what the allocation maximises."""
        return {group: {chosen: score.value for chosen, score in row.items()} for group, row in self.entries.items()}

    def alone(self) -> Values:
        """Return the one-at-a-time scores."""
        return {group: {chosen: score.alone for chosen, score in row.items()} for group, row in self.entries.items()}

    def starts(self) -> dict[str, Values]:
        """Return by name what a search may start from: the scores, shrunken where there are two walks or more, and one at a time."""
        found: dict[str, Values] = {self.estimator: self.values(), "one at a time": self.alone()}
        if self.permutations >= _FEWEST_TO_SHRINK:
            found["shrunken"] = self._shrunken()
        return found

    def _shrunken(self) -> Values:
        """Format by format over all groups that may have it (`smpq.shrinkage`); the float format stays at 0."""
        values: dict[str, dict[Format, float]] = {group: dict.fromkeys(row, 0.0) for group, row in self.entries.items()}
        for chosen in dict.fromkeys(chosen for row in self.entries.values() for chosen in row):
            scored = {group: row[chosen] for group, row in self.entries.items() if chosen in row and row[chosen].marginals}
            if scored:
                alone = {group: score.alone for group, score in scored.items()}
                found = shrink(alone, {group: score.marginals for group, score in scored.items()})
                for group, value in found.values.items():
                    values[group][chosen] = value
        return values

    def to_json(self) -> dict[str, Any]:
        """Return the file form."""
        return {
            "schema": SCHEMA,
            "value": self.value_name,
            "estimator": self.estimator,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "permutations": self.permutations,
            "stop_reason": self.stop_reason,
            "efficiency_gap": self.efficiency_gap,
            "scores": {
                group: {
                    str(chosen): {
                        "value": score.value,
                        "standard_error": score.standard_error,
                        "interval": list(score.interval),
                        "samples": score.samples,
                        "alone": score.alone,
                        "marginals": list(score.marginals),
                    }
                    for chosen, score in row.items()
                }
                for group, row in self.entries.items()
            },
        }

    @classmethod
    def from_json(cls, record: Any, space: Space) -> Scores:
        """Read the file form; UserError when it is of another version or lacks a (group, format) of the space."""
        try:
            if record["schema"] != SCHEMA:
                raise UserError(f"these scores have schema {record['schema']!r}; this version reads schema {SCHEMA}: score again")
            entries = {
                group: {
                    Format.from_text(text): Score(
                        cell["value"], cell["standard_error"], cell["samples"], cell["alone"], tuple(cell["marginals"])
                    )
                    for text, cell in row.items()
                }
                for group, row in record["scores"].items()
            }
            scores = cls(
                entries, record["value"], record["estimator"], record["seed"], record["evaluations"], record["permutations"],
                record["stop_reason"], record["efficiency_gap"],
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the scores are incomplete ({error!r}): score again") from error
        for group in space.groups:
            for chosen in space.formats[group.name]:
                if chosen not in scores.entries.get(group.name, {}):
                    raise UserError(f"there is no score for {chosen} on {group.name}: score again with this list of formats")
        return scores
