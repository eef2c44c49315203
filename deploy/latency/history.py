"""The searches over measured engines, step by step in `loop.json`. One that was stopped goes on with the same
decisions, and so does the run that it belongs to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from calib.formats.format import Format
from deploy.files.loop import CandidateRow, FinalistRow, LoopFile, LoopRow, OutcomeRow, StepRow
from deploy.files.store import RecordStore
from deploy.latency.loop import LatencyLoop
from deploy.latency.observed import (
    Observation,
    Observe,
    Refusal,
    blamed_rows,
    machine_rows,
    observations_of,
    refusals_of,
)
from deploy.latency.steps import Outcome, Proposal, Step, StopReason
from smpq.files import Interval
from smpq.problem.policy import Policy, Space


class Search:
    """One search of the run's `loop.json`, the last one there for this budget and machine.

    1. A search that was stopped begins again with what was known at its own start. Its recorded steps are answered from
       the file. Its decisions depend on nothing else, so they are the same as before.
    2. A search that has ended is never changed. Where searches are taken up (`takes_up`), it comes to the same again
       whatever has been measured since. Another one begins only where it was overruled (`settle`), or had not come to
       its own end.
    3. Else another one for the same budget is another entry.
    """

    def __init__(
        self,
        store: RecordStore,
        space: Space,
        budget: str,
        machine: str,
        limit: float,
        known: Sequence[Observation | Refusal],
        *,
        takes_up: bool = False,
        decided_on: str | None = None,
    ) -> None:
        """Find the search, or make one that starts from `known`. Nothing is written yet.

        `decided_on` is the hash of the batches that a limit on the loss is decided on: on others it is another search.
        """
        self._store, self._space, self._takes_up = store, space, takes_up
        file = store.find(LoopFile) or LoopFile()
        last = _last_of(file, budget, machine)
        if last is not None and last.decided_on != decided_on:
            last = None
        if last is not None and (last.outcome is None or (takes_up and _came_to_its_end(last))):
            self._row = last
        else:
            self._row = LoopRow(
                budget=budget,
                machine=machine,
                limit_ratio=limit,
                known=machine_rows(space, known),
                decided_on=decided_on,
            )
        self._earlier = tuple(row for row in file.searches if row is not self._row)

    @property
    def limit(self) -> float:
        """The limit as a ratio to the float engine, as it was when the search began."""
        return self._row.limit_ratio

    @property
    def observations(self) -> list[Observation]:
        """What was measured before the search."""
        with self._store.about(LoopFile):
            return observations_of(self._row.known, self._space)

    @property
    def refusals(self) -> list[Refusal]:
        """What was refused before the search."""
        with self._store.about(LoopFile):
            return refusals_of(self._row.known, self._space)

    def recalled(self, looped: LatencyLoop) -> Outcome | None:
        """Tell a loop, which has been told nothing yet, the recorded steps; returns what it came to. None, and nothing
        is told, while the search is under way.
        """
        if self._row.outcome is None:
            return None
        with self._store.about(LoopFile):
            found = [(proposal_of(step, self._space), _found(step, self._space)) for step in self._row.steps]
        for proposal, verdict in found:
            looped.tell(proposal, verdict)
        return dataclasses.replace(looped.outcome(), stop_reason=self._row.outcome.stop_reason)

    def resumed(self, measure: Callable[[Policy, bool], Observation | Refusal]) -> Observe:
        """Return `measure` with the recorded steps answered from the file. It is told whether a policy was measured
        before: one that is doubtful is asked for twice.
        """
        with self._store.about(LoopFile):
            found = [_found(step, self._space) for step in self._row.steps]
        recorded: dict[str, list[Observation | Refusal]] = {}
        for each in found:
            recorded.setdefault(each.policy.key(), []).append(each)
        before = {each.policy.key() for each in self.observations}

        def known_or_measured(policy: Policy) -> Observation | Refusal:
            key, again = policy.key(), policy.key() in before
            before.add(key)
            return recorded[key].pop(0) if recorded.get(key) else measure(policy, again)

        return known_or_measured

    def keep(self, steps: Sequence[Step]) -> None:
        """Write the steps so far, unless the file has them."""
        if len(steps) > len(self._row.steps):
            self._write(replace(self._row, steps=tuple(step_row(step, self._space) for step in steps)))

    def add(self, steps: Sequence[Step]) -> None:
        """Append steps that a device took by itself, except those that the file has from this machine."""
        searches = [search for search in (*self._earlier, self._row) if search.machine == self._row.machine]
        known = [row for search in searches for row in search.steps]
        new = [row for row in (step_row(step, self._space) for step in steps) if row not in known]
        if new:
            self._write(replace(self._row, steps=(*self._row.steps, *new)))

    def begin(self) -> None:
        """Write what the search starts from. It is the last one of the file from then on."""
        self._write(self._row)

    def end(self, outcome: Outcome) -> None:
        """Write the outcome. A search without a step is removed from the file where none are taken up."""
        if self._row.steps or self._takes_up:
            self._write(replace(self._row, outcome=_outcome_row(outcome, self._space)))
        else:
            self._store.write(LoopFile(searches=self._earlier))

    def _write(self, row: LoopRow) -> None:
        self._row = row
        self._store.write(LoopFile(searches=(*self._earlier, row)))


def settled(store: RecordStore, budget: str, machine: str) -> tuple[bool | None, int]:
    """Return whether what the last search for a budget came to stands, None before that is known, and how many searches
    were overruled.
    """
    file = store.find(LoopFile) or LoopFile()
    same = _all_of(file, budget, machine)
    return same[-1].stands if same else None, sum(row.stands is False for row in same)


def settle(store: RecordStore, budget: str, machine: str, *, stands: bool) -> None:
    """Write whether what the last search for a budget came to stands. A file without one is left as it is."""
    file = store.find(LoopFile) or LoopFile()
    last = _last_of(file, budget, machine)
    if last is not None:
        rows = [replace(row, stands=stands) if row is last else row for row in file.searches]
        store.write(LoopFile(searches=tuple(rows)))


def step_row(step: Step, space: Space) -> StepRow:
    """Return the file form of a step."""
    proposal, found = step.proposal, step.observation
    return StepRow(
        label=proposal.label,
        policy=proposal.policy.to_file(space.groups),
        predicted=proposal.predicted,
        predicted_interval=Interval(*proposal.interval),
        predicted_from=proposal.predicted_from,
        measured=found.ratio if found is not None else None,
        standard_error=found.standard_error if found is not None else None,
        measured_interval=Interval.around(found.ratio, found.standard_error) if found is not None else None,
        float_ms=found.float_ms if found is not None else None,
        slowdown=found.slowdown if found is not None else 1.0,
        refused=step.refusal.reason if step.refusal is not None else None,
        blamed=blamed_rows(step.refusal) if step.refusal is not None else (),
        met=step.met,
    )


def steps_for(file: LoopFile | None, budget: str) -> list[StepRow]:
    """Return the steps of all searches for a budget, of the machine that the last of them used."""
    searches = [row for row in (file.searches if file is not None else ()) if row.budget == budget]
    return [step for row in searches if row.machine == searches[-1].machine for step in row.steps]


def ended_early(file: LoopFile | None, budget: str) -> bool:
    """Whether the last search for a budget had not come to its end when it was stopped."""
    outcomes = [row.outcome for row in (file.searches if file is not None else ()) if row.budget == budget]
    return bool(outcomes) and outcomes[-1] is not None and outcomes[-1].stop_reason == StopReason.EARLY


def _all_of(file: LoopFile, budget: str, machine: str) -> list[LoopRow]:
    return [row for row in file.searches if (row.budget, row.machine) == (budget, machine)]


def _last_of(file: LoopFile, budget: str, machine: str) -> LoopRow | None:
    return next(reversed(_all_of(file, budget, machine)), None)


def _came_to_its_end(row: LoopRow) -> bool:
    return row.outcome is not None and row.outcome.stop_reason != StopReason.EARLY and row.stands is not False


def _outcome_row(outcome: Outcome, space: Space) -> OutcomeRow:
    return OutcomeRow(
        policy=outcome.policy.to_file(space.groups),
        value=outcome.value,
        met=outcome.met,
        stop_reason=outcome.stop_reason,
        finalists=tuple(
            FinalistRow(policy=each.policy.to_file(space.groups), value=each.value, unseen_value=each.unseen)
            for each in outcome.finalists
        ),
    )


def proposal_of(row: StepRow | CandidateRow, space: Space) -> Proposal:
    """Read back what was proposed."""
    interval, policy = row.predicted_interval, Policy.from_file(row.policy, space)
    return Proposal(row.label, policy, row.predicted, (interval.low, interval.high), row.predicted_from)


def _found(step: StepRow, space: Space) -> Observation | Refusal:
    policy = Policy.from_file(step.policy, space)
    if step.measured is None:
        blamed = tuple((group, Format.from_text(text)) for group, text in step.blamed)
        return Refusal(policy, step.refused or "", blamed)
    return Observation(policy, step.measured, step.standard_error or 0.0, step.float_ms, slowdown=step.slowdown)
