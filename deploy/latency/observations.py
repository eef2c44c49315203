"""The whole-engine measurements that a run has made: `measurements.json`, and the latency model fitted to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from calib.errors import UserError
from calib.formats import Format
from deploy.devices.base import Result
from deploy.devices.checks import check_measured
from deploy.export import call_name
from deploy.latency.loop import Refusal
from deploy.latency.model import LatencyModel, Observation, fit
from deploy.on_device.blame import nodes_named
from deploy.onnx_files import node_names
from deploy.prepare import Prepared, rules_of
from smpq.joins import Edge, find_edges
from smpq.policy import Policy, Space

FILE = "measurements.json"
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


def latency_model(prepared: Prepared) -> LatencyModel:
    """Fit the latency model to what the run has measured; UserError when that is nothing."""
    known = read_observations(prepared)
    if not known:
        raise UserError("this run has measured no engine yet, so latency cannot be predicted: use smpq run, or smpq measure first")
    reference = Observation(prepared.space.uniform(prepared.space.reference), 1.0, 0.0)
    return fit(prepared.space, edges(prepared), [reference, *known])


def edges(prepared: Prepared) -> tuple[Edge, ...]:
    """Return the tensors that are converted where integers meet floats."""
    return find_edges(prepared.traced, prepared.space.groups, rules_of(prepared.target))


def read_observations(prepared: Prepared, machine: str | None = None) -> list[Observation]:
    """Read the whole-engine measurements of this run, made with the same model, on `machine` where that is given."""
    record = _read(prepared, machine)
    return [
        Observation(Policy.from_json(entry["policy"], prepared.space), entry["ratio"], entry["standard_error"])
        for entry in record["observations"]
    ]


def read_refusals(prepared: Prepared, machine: str | None = None) -> list[Refusal]:
    """Read what the runtime refused to build."""
    return [
        Refusal(Policy.from_json(entry["policy"], prepared.space), entry["reason"], entry["blamed"])
        for entry in _read(prepared, machine)["refusals"]
    ]


def known_float_ms(prepared: Prepared, machine: str | None = None) -> float | None:
    """Return what the float engine takes for one batch in milliseconds, None before anything was measured."""
    found = _read(prepared, machine)["float_ms"]
    return None if found is None else float(found)


def keep_measured(prepared: Prepared, measured: Sequence[Measured], machine: str) -> list[Observation | Refusal]:
    """Add results of `machine` to `measurements.json`, in place of earlier ones of the same policies; returns what each says.

    UserError, and nothing is kept, when an engine failed for a reason that is not the model's: only a refusal by the
    runtime lasts.
    """
    check_measured(each.result for each in measured)
    verdicts: list[Observation | Refusal] = [
        each.observation()
        if each.result.failed is None
        else Refusal(each.policy, each.result.failed, blamed_formats(prepared.space, each, _nodes_of(prepared, each.result)))
        for each in measured
    ]
    record = _read(prepared, machine)
    new = {verdict.policy.key() for verdict in verdicts}

    def rows(kept: Sequence[Observation | Refusal]) -> list[dict[str, Any]]:
        return [_row(prepared, each) for each in (*(old for old in kept if old.policy.key() not in new), *verdicts)]

    everything = rows([*read_observations(prepared, machine), *read_refusals(prepared, machine)])
    times = [each.result.float_ms for each in measured if each.result.float_ms is not None]
    prepared.run.write_json(
        FILE,
        {
            "schema": 3,
            "fingerprint": prepared.fingerprint,
            "machine": machine,
            "float_ms": median(times) if times else record["float_ms"],
            "observations": [row for row in everything if "ratio" in row],
            "refusals": [row for row in everything if "reason" in row],
        },
    )
    return verdicts


def _row(prepared: Prepared, found: Observation | Refusal) -> dict[str, Any]:
    policy = found.policy.to_json(prepared.space.groups)
    if isinstance(found, Refusal):
        return {"policy": policy, "reason": found.reason, "blamed": [[group, str(chosen)] for group, chosen in found.blamed]}
    return {"policy": policy, "ratio": found.ratio, "standard_error": found.standard_error}


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


def _nodes_of(prepared: Prepared, result: Result) -> tuple[str, ...]:
    """Return the names of the ONNX nodes of a candidate; none when its file is gone."""
    file = prepared.run.file(CANDIDATES) / f"{result.name}.onnx"
    return node_names(file) if file.is_file() else ()


def _read(prepared: Prepared, machine: str | None) -> dict[str, Any]:
    """Return the file's record with checked rows, an empty one where there is nothing of this model and machine."""
    empty: dict[str, Any] = {"float_ms": None, "observations": [], "refusals": []}
    if not prepared.run.has(FILE):
        return empty
    record = prepared.run.read_json(FILE, keys=["fingerprint", "machine", "observations", "refusals", "float_ms"])
    if record["fingerprint"] != prepared.fingerprint:
        prepared.progress.warn(f"{FILE} was made with other weights or data: measuring again")
        return empty
    if machine is not None and record["machine"] != machine:
        prepared.progress.warn(f"{FILE} was made on another machine ({record['machine']}): measuring again")
        return empty
    try:
        for entry in record["observations"]:
            entry.update(ratio=float(entry["ratio"]), standard_error=float(entry["standard_error"]), policy=entry["policy"])
        for entry in record["refusals"]:
            blamed = tuple((str(group), Format.from_text(text)) for group, text in entry["blamed"])
            entry.update(policy=entry["policy"], reason=str(entry["reason"]), blamed=blamed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{FILE} is damaged ({error!r}): delete it to measure again") from error
    return record
