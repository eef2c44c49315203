"""The engines that a run has measured: `observations.json`, and the latency model that is fitted to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from calib.errors import UserError
from calib.formats.format import Format
from deploy.devices.base import Result
from deploy.devices.checks import check_measured
from deploy.files.loop import MachineRows, ObservationsFile
from deploy.files.store import RecordStore
from deploy.latency.doubts import doubted
from deploy.latency.model import LatencyModel, fit
from deploy.latency.observed import Observation, Refusal, machine_rows, observation_of, observations_of, refusals_of
from deploy.lowering.naming import call_names
from deploy.lowering.onnx_files import node_names
from deploy.runner.blame import nodes_named
from smpq.problem.joins import Edge
from smpq.problem.policy import Policy, Space


class Observations:
    """What each machine has measured of the engines of a run, and what its runtime refused.

    Where a machine may be named, None stands for the last one that measured.
    """

    def __init__(
        self, store: RecordStore, space: Space, fingerprint: str, candidates: Path, warn: Callable[[str], None]
    ) -> None:
        """`fingerprint` names model and data: what was measured of others is not taken, which `warn` is told.
        `candidates` is the directory of the lowered models.
        """
        self._store, self.space, self._fingerprint = store, space, fingerprint
        self._candidates, self._warn = candidates, warn

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines that have measured, the last one at the end."""
        return tuple(self._file().machines)

    def engines(self, machine: str | None = None) -> list[Observation]:
        """Read what was timed, with the doubts that later measurements cast on earlier ones."""
        with self._store.about(ObservationsFile):
            return doubted(observations_of(self._rows(machine), self.space))

    def refusals(self, machine: str | None = None) -> list[Refusal]:
        """Read what the runtime refused to build."""
        with self._store.about(ObservationsFile):
            return refusals_of(self._rows(machine), self.space)

    def all(self, machine: str | None = None) -> list[Observation | Refusal]:
        """Read both."""
        return [*self.engines(machine), *self.refusals(machine)]

    def float_ms(self, machine: str | None = None) -> float | None:
        """Return what the float engine takes for one batch in milliseconds, None before anything was measured."""
        return self._rows(machine).float_ms

    def keep(self, results: Sequence[tuple[Policy, Result]], machine: str) -> list[Observation | Refusal]:
        """Add results of `machine`, in place of earlier ones of the same policies; returns what each says.

        What other machines have measured stays. UserError, and nothing is kept, when an engine failed for a reason that
        is not the model's: only a refusal by the runtime lasts.
        """
        check_measured(result for _, result in results)
        verdicts = [self._verdict(policy, result) for policy, result in results]
        file, rows = self._file(), self._rows(machine)
        timed, refused = observations_of(rows, self.space), refusals_of(rows, self.space)
        before, new = {each.policy.key(): each for each in timed}, {each.policy.key() for each in verdicts}
        for index, each in enumerate(verdicts):
            old = before.get(each.policy.key())
            # a device may answer with what it has measured before
            if isinstance(each, Observation) and old is not None:
                verdicts[index] = replace(each, again=old.again or old.ratio != each.ratio)
        earlier: tuple[Observation | Refusal, ...] = (*timed, *refused)
        everything = [*(old for old in earlier if old.policy.key() not in new), *verdicts]
        times = [result.float_ms for _, result in results if result.float_ms is not None]
        kept = machine_rows(self.space, everything, median(times) if times else rows.float_ms)
        others = {name: other for name, other in file.machines.items() if name != machine}
        self._store.write(ObservationsFile(fingerprint=self._fingerprint, machines={**others, machine: kept}))
        return verdicts

    def _verdict(self, policy: Policy, result: Result) -> Observation | Refusal:
        if result.failed is None:
            return observation_of(policy, result)
        file = self._candidates / f"{result.name}.onnx"
        nodes = node_names(file) if file.is_file() else ()
        return Refusal(policy, result.failed, blamed_formats(self.space, policy, result, nodes))

    def _rows(self, machine: str | None) -> MachineRows:
        machines = self._file().machines
        return machines.get(next(reversed(machines), "") if machine is None else machine, MachineRows())

    def _file(self) -> ObservationsFile:
        """Return the file, an empty one where there is nothing of this model and data."""
        empty = ObservationsFile(fingerprint=self._fingerprint, machines={})
        record = self._store.find(ObservationsFile)
        if record is None:
            return empty
        if record.fingerprint != self._fingerprint:
            self._warn(f"{record.NAME} was made with another model, other weights or data: measuring again")
            return empty
        return record


def latency_model(observations: Observations, edges: Sequence[Edge], say: Callable[[str], None]) -> LatencyModel:
    """Fit the latency model to what the last machine to measure has found; UserError when that is nothing."""
    known, machines = observations.engines(), observations.machines
    if not known:
        raise UserError(
            "this run has measured no engine yet, so latency cannot be predicted: use smpq run, or smpq measure first"
        )
    if len(machines) > 1:
        say(f"latency as measured on {machines[-1]}; the run also has measurements of {', '.join(machines[:-1])}")
    return fit(observations.space, edges, known)


def blamed_formats(
    space: Space, policy: Policy, result: Result, nodes: Collection[str]
) -> tuple[tuple[str, Format], ...]:
    """Return the formats of the groups whose layers the runtime blames, float ones aside.

    `nodes` are the names of the nodes of the engine's ONNX graph: what else a message mentions is no layer.
    """
    told = {*nodes_named(result.failed or "", nodes), *result.nodes} & set(nodes)
    found: list[tuple[str, Format]] = []
    for group in space.groups:
        calls = {name for unit in group.units for name in call_names(unit).values()}
        # of `layer1.conv` are also `layer1.conv/weight/DQ` and whatever else was put before it
        if calls & {node.partition("/")[0] for node in told} and policy[group.name] != space.reference:
            found.append((group.name, policy[group.name]))
    return tuple(found)
