"""The whole-engine measurements that a run has made: `measurements.json`, and the latency model fitted to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from calib.errors import UserError
from calib.formats.format import Format
from deploy.devices.base import Result
from deploy.devices.checks import check_measured
from deploy.files.engine import TimedRow
from deploy.files.search import MachineRows, MeasurementsFile, ObservedRow, RefusedRow
from deploy.latency.loop import Refusal
from deploy.latency.model import LatencyModel, Observation, fit
from deploy.lowering.export import call_name
from deploy.lowering.onnx_files import node_names
from deploy.run.workspace import Workspace, rules_of
from deploy.runner.blame import nodes_named
from smpq.problem.joins import Edge, find_edges
from smpq.problem.policy import Policy, Space

CANDIDATES = "candidates"
"""Directory of a run: lowered models, named by the hash of their content."""


@dataclass(frozen=True)
class Measured:
    """A policy and what a device said of its engine."""

    policy: Policy
    result: Result

    def observation(self) -> Observation:
        """Return the ratio with its standard error; only of an engine that was built."""
        assert self.result.ratio is not None
        assert self.result.ratio_interval is not None
        low, high = self.result.ratio_interval
        return Observation(self.policy, self.result.ratio, (high - low) / (2 * 1.96))


def timed_row(result: Result) -> TimedRow:
    """Return the file form of a result; only of an engine that was built. UserError when its figures contradict each
    other.
    """
    assert result.state is not None
    figures = ("batch", "ratio", "engine_ms", "float_ms", "p99_ms", "p99_calls", "p99_note", "throughput", "clock")
    on_gpu = ("enqueue_ms", "hot_ms", "cold_ms")
    values = {name: getattr(result, name) for name in (*figures, *on_gpu)} | {"throttled": result.state.throttled}
    try:
        return msgspec.convert({**values, "ratio_interval": list(result.ratio_interval or ())}, TimedRow)
    except msgspec.ValidationError as error:
        raise UserError(f"the device's figures contradict each other ({error}): measure again") from error


def latency_model(workspace: Workspace) -> LatencyModel:
    """Fit the latency model to what the last machine to measure has found; UserError when that is nothing."""
    known, machines = read_observations(workspace), known_machines(workspace)
    if not known:
        raise UserError(
            "this run has measured no engine yet, so latency cannot be predicted: use smpq run, or smpq measure first"
        )
    if len(machines) > 1:
        workspace.progress.say(
            f"latency as measured on {machines[-1]}; the run also has measurements of {', '.join(machines[:-1])}"
        )
    return fitted(workspace, known)


def fitted(workspace: Workspace, known: Sequence[Observation]) -> LatencyModel:
    """Fit the latency model to some measured engines, and to the float engine, whose ratio is 1."""
    reference = Observation(workspace.space.uniform(workspace.space.reference), 1.0, 0.0)
    return fit(workspace.space, edges(workspace), [reference, *known])


def edges(workspace: Workspace) -> tuple[Edge, ...]:
    """Return the tensors that are converted where integers meet floats."""
    return find_edges(workspace.traced, workspace.space.groups, rules_of(workspace.target))


def read_observations(workspace: Workspace, machine: str | None = None) -> list[Observation]:
    """Read the whole-engine measurements of this run, made with the same model, on `machine` or on the last one to
    measure.
    """
    with workspace.run.about(MeasurementsFile):
        return observations_of(_rows(workspace, machine), workspace.space)


def read_refusals(workspace: Workspace, machine: str | None = None) -> list[Refusal]:
    """Read what the runtime refused to build."""
    with workspace.run.about(MeasurementsFile):
        return refusals_of(_rows(workspace, machine), workspace.space)


def known_float_ms(workspace: Workspace, machine: str | None = None) -> float | None:
    """Return what the float engine takes for one batch in milliseconds, None before anything was measured."""
    return _rows(workspace, machine).float_ms


def known_machines(workspace: Workspace) -> tuple[str, ...]:
    """Name the machines that this run has measurements of, the last one to measure at the end."""
    return tuple(_file(workspace).machines)


def keep_measured(workspace: Workspace, measured: Sequence[Measured], machine: str) -> list[Observation | Refusal]:
    """Add results of `machine` to `measurements.json`, in place of earlier ones of the same policies; returns what each
    says.

    What other machines have measured stays. UserError, and nothing is kept, when an engine failed for a reason that is
    not the model's: only a refusal by the runtime lasts.
    """
    check_measured(each.result for each in measured)
    verdicts: list[Observation | Refusal] = [
        each.observation()
        if each.result.failed is None
        else Refusal(
            each.policy, each.result.failed, blamed_formats(workspace.space, each, _nodes_of(workspace, each.result))
        )
        for each in measured
    ]
    file, rows = _file(workspace), _rows(workspace, machine)
    new = {verdict.policy.key() for verdict in verdicts}
    earlier: tuple[Observation | Refusal, ...] = (
        *observations_of(rows, workspace.space),
        *refusals_of(rows, workspace.space),
    )
    everything: list[Observation | Refusal] = [*(old for old in earlier if old.policy.key() not in new), *verdicts]
    times = [each.result.float_ms for each in measured if each.result.float_ms is not None]
    kept = machine_rows(workspace.space, everything, median(times) if times else rows.float_ms)
    others = {name: other for name, other in file.machines.items() if name != machine}
    workspace.run.write(MeasurementsFile(fingerprint=workspace.fingerprint, machines={**others, machine: kept}))
    return verdicts


def machine_rows(space: Space, found: Sequence[Observation | Refusal], float_ms: float | None = None) -> MachineRows:
    """Return the file form of what is known of one machine."""
    return MachineRows(
        float_ms=float_ms,
        observations=tuple(
            ObservedRow(policy=each.policy.to_file(space.groups), ratio=each.ratio, standard_error=each.standard_error)
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
    """Read back the measured engines."""
    return [
        Observation(Policy.from_file(row.policy, space), row.ratio, row.standard_error) for row in rows.observations
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


def blamed_formats(space: Space, measured: Measured, nodes: Collection[str]) -> tuple[tuple[str, Format], ...]:
    """Return the formats of the groups whose layers the runtime blames, float ones aside.

    `nodes` are the names of the nodes of the engine's ONNX graph: what else a message mentions is no layer.
    """
    told = {*nodes_named(measured.result.failed or "", nodes), *measured.result.nodes} & set(nodes)
    found: list[tuple[str, Format]] = []
    for group in space.groups:
        calls = {call_name(unit.path, index) for unit in group.units for index in range(len(unit.calls))}
        # of `layer1.conv` are also `layer1.conv/weight/DQ` and whatever else was put before it
        if calls & {node.partition("/")[0] for node in told} and measured.policy[group.name] != space.reference:
            found.append((group.name, measured.policy[group.name]))
    return tuple(found)


def _nodes_of(workspace: Workspace, result: Result) -> tuple[str, ...]:
    """Return the names of the ONNX nodes of a candidate; none when its file is gone."""
    file = workspace.run.file(CANDIDATES) / f"{result.name}.onnx"
    return node_names(file) if file.is_file() else ()


def _rows(workspace: Workspace, machine: str | None) -> MachineRows:
    """Return what is known of a machine; without a name, of the last one that measured."""
    machines = _file(workspace).machines
    return machines.get(next(reversed(machines), "") if machine is None else machine, MachineRows())


def _file(workspace: Workspace) -> MeasurementsFile:
    """Return the file, an empty one where there is nothing of this model and data."""
    empty = MeasurementsFile(fingerprint=workspace.fingerprint, machines={})
    record = workspace.run.find(MeasurementsFile)
    if record is None:
        return empty
    if record.fingerprint != workspace.fingerprint:
        workspace.progress.warn(f"{record.NAME} was made with another model, other weights or data: measuring again")
        return empty
    return record
