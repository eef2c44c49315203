"""What each (group, format) contributes, with its uncertainty and where the number came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from calib.errors import UserError
from calib.formats.format import Format
from smpq.files import Interval, NearRow, PairRow, ScoreRow, ScoresFile
from smpq.problem.policy import Policy, Space
from smpq.scoring.shrinkage import shrink
from smpq.solve.allocate import Neighbourhood, PairedValues, Pairs, Values

_FEWEST_TO_SHRINK = 2


@dataclass(frozen=True)
class Score:
    """Change of the value when a group moves from the float format to this one, averaged over contexts.

    In units of the value (nats for `kl`); `standard_error` is that of the mean over `samples` contexts, `alone` the
    change when every other group is float; `marginals` holds the change in each context, in the order of the walks.
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

    def to_row(self) -> ScoreRow:
        """Return the file form."""
        return ScoreRow(
            value=self.value,
            standard_error=self.standard_error,
            interval=Interval.around(self.value, self.standard_error),
            samples=self.samples,
            alone=self.alone,
            marginals=self.marginals,
        )

    @classmethod
    def from_row(cls, row: ScoreRow) -> Score:
        """Read the file form."""
        return cls(row.value, row.standard_error, row.samples, row.alone, row.marginals)


@dataclass(frozen=True)
class Scores:
    """All scores of one estimation, by group name and format; `method` is the one that made them (`smpq.methods`).

    `pairs`: what two moves of different groups are worth together besides, in units of the value. `near`: the policy
    around which they were measured, and how far from it they are to be trusted; None where they hold everywhere.
    `notes`: what a reader has to know of them.
    """

    entries: Mapping[str, Mapping[Format, Score]]
    value_name: str
    estimator: str
    seed: int
    evaluations: int
    permutations: int
    stop_reason: str
    efficiency_gap: float
    method: str = ""
    pairs: Pairs = field(default_factory=dict)
    near: Neighbourhood | None = None
    notes: tuple[str, ...] = ()

    def objective(self) -> Values:
        """Return what the allocation maximises."""
        return PairedValues(self.values(), self.pairs, self.near) if self.pairs or self.near else self.values()

    def values(self) -> Values:
        """Return the values of moves."""
        return {group: {chosen: score.value for chosen, score in row.items()} for group, row in self.entries.items()}

    def alone(self) -> Values:
        """Return the one-at-a-time scores."""
        return {group: {chosen: score.alone for chosen, score in row.items()} for group, row in self.entries.items()}

    def starts(self) -> dict[str, Values]:
        """Return by name what a search may start from: the scores, one at a time, and shrunken where there are two
        walks or more.

        Scores that take no contexts and no pairs are one at a time themselves, and there is nothing to shrink them to.
        """
        found: dict[str, Values] = {self.estimator: self.objective()}
        if self.alone() == self.values() and not self.pairs:
            return found
        found["one at a time"] = self.alone()
        if self.permutations >= _FEWEST_TO_SHRINK:
            found["shrunken"] = self._shrunken()
        return found

    def _shrunken(self) -> Values:
        """Format by format over all groups that may have it (`smpq.scoring.shrinkage`); the float format stays at 0."""
        values: dict[str, dict[Format, float]] = {group: dict.fromkeys(row, 0.0) for group, row in self.entries.items()}
        for chosen in dict.fromkeys(chosen for row in self.entries.values() for chosen in row):
            scored = {
                group: row[chosen] for group, row in self.entries.items() if chosen in row and row[chosen].marginals
            }
            if scored:
                alone = {group: score.alone for group, score in scored.items()}
                found = shrink(alone, {group: score.marginals for group, score in scored.items()})
                for group, value in found.items():
                    values[group][chosen] = value
        return values

    def to_file(self) -> ScoresFile:
        """Return the file form."""
        return ScoresFile(
            method=self.method,
            value=self.value_name,
            estimator=self.estimator,
            seed=self.seed,
            evaluations=self.evaluations,
            permutations=self.permutations,
            stop_reason=self.stop_reason,
            efficiency_gap=self.efficiency_gap,
            scores={
                group: {str(chosen): score.to_row() for chosen, score in row.items()}
                for group, row in self.entries.items()
            },
            pairs=tuple(
                PairRow(one, str(first), other, str(second), value)
                for ((one, first), (other, second)), value in self.pairs.items()
            ),
            near=None
            if self.near is None
            else NearRow(policy={g: str(f) for g, f in self.near.centre.formats.items()}, changes=self.near.changes),
            notes=self.notes,
        )

    @classmethod
    def from_file(cls, record: ScoresFile, space: Space) -> Scores:
        """Read the file form; UserError when it lacks a (group, format) of the space, or when its walks do not fit
        together.
        """
        entries = {
            group: {Format.from_text(text): Score.from_row(cell) for text, cell in row.items()}
            for group, row in record.scores.items()
        }
        for group in space.groups:
            for chosen in space.formats[group.name]:
                if chosen not in entries.get(group.name, {}):
                    raise UserError(
                        f"{record.NAME} has no score for {chosen} on {group.name}: score again with this list of "
                        "formats"
                    )
                walks = len(entries[group.name][chosen].marginals)
                if walks not in (0, record.permutations):
                    raise UserError(
                        f"{record.NAME} has {walks} marginals for {chosen} on {group.name}, from {record.permutations} "
                        "walks: score again"
                    )
        pairs = {
            ((row.one, Format.from_text(row.one_format)), (row.other, Format.from_text(row.other_format))): row.value
            for row in record.pairs
        }
        strange = [move for pair in pairs for move in pair if move[1] not in entries.get(move[0], {})]
        near = record.near
        centre = {} if near is None else {group: Format.from_text(text) for group, text in near.policy.items()}
        strange += [move for move in centre.items() if move[1] not in entries.get(move[0], {})]
        if strange or (centre and centre.keys() != entries.keys()):
            raise UserError(
                f"{record.NAME} has pairs, or a policy, with moves that have no score of their own, or lacks a layer's "
                f"({strange[:1]}): score again"
            )
        return cls(
            entries, record.value, record.estimator, record.seed, record.evaluations, record.permutations,
            record.stop_reason, record.efficiency_gap, record.method, pairs,
            Neighbourhood(Policy(centre), near.changes) if near else None, record.notes,
        )  # fmt: skip
