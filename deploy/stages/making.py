"""Make: export, build, measure and verify the engine of the policy in `policy.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from calib.errors import UserError
from deploy.backends.base import UnitKernel
from deploy.devices.base import Result
from deploy.files.engine import BuildFile, BuiltRow, ExportFile, KernelRow, LatencyFile, TimingRow
from deploy.files.search import BudgetFile
from deploy.files.verification import VerifyFile
from deploy.latency.prediction import Prediction, prediction
from deploy.lowering.onnx_files import sha256
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import Workspace
from deploy.stages.engines import build_engines, unit_kernels
from deploy.stages.finetuning import policy_text, tuned, version_of
from deploy.stages.shipping import discard_other, ship
from deploy.stages.trtexec import TrtexecExport, export_for_trtexec
from deploy.stages.verifying import verify as verify_stages
from smpq.files import Interval
from smpq.problem.budget import Budget, Limit
from smpq.problem.policy import Policy
from smpq.quantized.plan import QuantPlan


def export(workspace: Workspace, policy: Policy) -> Path:
    """Write `model.<target>.onnx`, the plan of the policy in the form the target wants, with the fine-tuned weights if
    the run has any.
    """
    path = workspace.run.file(workspace.backend.names.model)
    source, plan = _source(workspace, policy)
    with workspace.progress.step("insert quantisers"):
        if source == export_float_model(workspace):
            report = workspace.candidates.lower_into(policy, path)
        else:
            report = workspace.backend.lower(source, plan, workspace.space.units, path, workspace.settings.batch)
    workspace.run.write(report.to_file(version_of(workspace.run, policy), workspace.target.name))
    return path


def export_qdq(workspace: Workspace, policy: Policy, batches: Sequence[int] = ()) -> TrtexecExport:
    """Write `model.qdq.onnx` for trtexec, or for tensorrt-rtx's own tool. `batches` is one size, or the smallest, usual
    and largest; the run's own without any.

    UserError for a target of another runtime, or for two batch sizes.
    """
    if len(batches) not in (0, 1, 3):
        raise UserError(f"give one batch size or three (smallest, usual, largest), not {len(batches)}")
    smallest, usual, largest = batches if len(batches) == 3 else (*batches, workspace.settings.batch)[:1] * 3
    source, plan = _source(workspace, policy)
    units, target, run = workspace.space.units, workspace.target, workspace.run
    product = run.file(workspace.backend.names.product)
    with workspace.progress.step("insert quantisers"):
        return export_for_trtexec(source, plan, units, target, run.path, (smallest, usual, largest), product)


def _source(workspace: Workspace, policy: Policy) -> tuple[Path, QuantPlan]:
    """Return the float model that the quantisers are put into, and the plan: fine-tuned where the run has such
    weights.
    """
    source, fine_tuned = export_float_model(workspace), tuned(workspace, policy)
    if fine_tuned is None:
        return source, workspace.plan(policy)
    return fine_tuned.export_source(), fine_tuned.plan


def build(workspace: Workspace, policy: Policy) -> BuildFile:
    """Build the engines of the exported model and of the float one; check every unit's kernel. Writes `build.json`.

    Nothing is built here when only the device can: it builds when the engine is measured.
    """
    export_float_model(workspace)
    needs_export(workspace, policy)
    discard_other(workspace)
    if workspace.builds_on_device:
        return _keep_build(workspace, policy, {}, {})
    with workspace.progress.step("build the engines"):
        engines, kernels = build_engines(workspace, policy)
        return _keep_build(workspace, policy, engines, _rows(kernels))


def _keep_build(
    workspace: Workspace, policy: Policy, engines: Mapping[str, BuiltRow], kernels: Mapping[str, KernelRow]
) -> BuildFile:
    record = BuildFile(
        policy=version_of(workspace.run, policy),
        built_on=workspace.device.describe() if workspace.builds_on_device else None,
        engines=dict(engines),
        kernels=dict(kernels),
    )
    workspace.run.write(record)
    return record


def _rows(kernels: Sequence[UnitKernel]) -> dict[str, KernelRow]:
    return {kernel.path: KernelRow(kernel=kernel.kernel, agrees=kernel.agrees) for kernel in kernels}


def measure(
    workspace: Workspace,
    policy: Policy,
    batches: Sequence[int] = (),
    limit: Limit | None = None,
    *,
    again: bool = False,
) -> LatencyFile:
    """Time the engine of the policy against the float engine. Writes `latency.json` and adds to `observations.json`.

    The plan that was measured, where the runtime has plans, becomes the run's: `engine.<target>/` and the engine beside
    it.

    `batches` are further batch sizes to time it at. Where only chance decides whether the latency is within `limit`,
    more rounds are made. What the device has measured before is not measured once more, unless it is asked for
    `again`. The prediction in the record is one that knew no measurement of this policy. UserError when engines of the
    target cannot be timed, or it does not build on the device.
    """
    if workspace.not_measurable is not None:
        raise UserError(workspace.not_measurable)
    needs_build(workspace, policy)
    needs_export(workspace, policy)
    bench, candidates = workspace.bench, workspace.candidates
    model = candidates.kept(workspace.run.file(workspace.backend.names.model))
    predicted = prediction(workspace.run, workspace.observations, workspace.edges, policy, bench.machine)
    turn = bench.fresh_turn(model) if again else _last_turn(workspace, policy, bench.machine)
    with workspace.progress.step("measure the engine"):
        result = bench.time_finally(model, limit=limit, first=turn)
        others = []
        for batch in batches:
            other = candidates.candidate(policy, batch)
            others.append(bench.time_finally(other, batch, first=bench.fresh_turn(other, batch) if again else 0))
    record = keep_latency(workspace, policy, result, bench.machine, predicted, others, turn)
    _keep_shipped(workspace, policy, result)
    workspace.observations.keep([(policy, result)], bench.machine)
    return record


def measure_again(workspace: Workspace, policy: Policy, batches: Sequence[int] = ()) -> LatencyFile:
    """Measure anew, as `measure`, for the latency limit of `budget.json` where there is one."""
    record = workspace.run.find(BudgetFile)
    limit = Budget.from_text(record.budget).limit("latency") if record is not None else None
    return measure(workspace, policy, batches, limit, again=True)


def keep_latency(
    workspace: Workspace,
    policy: Policy,
    result: Result,
    machine: str,
    predicted: Prediction | None,
    others: Sequence[Result] = (),
    turn: int = 0,
) -> LatencyFile:
    """Write `latency.json`: what `machine` has measured of the policy's engine, and of `others` at further batch
    sizes. `turn` is the first one of its turns.
    """
    record = LatencyFile(
        policy=version_of(workspace.run, policy),
        machine=machine,
        rounds=len(result.rounds_ms),
        predicted_ratio=predicted.ratio if predicted is not None else None,
        predicted_interval=Interval(*predicted.interval) if predicted is not None else None,
        predicted_from=predicted.engines if predicted is not None else 0,
        measurement=timed_row(result),
        batches=tuple(map(timed_row, others)),
        turn=turn,
    )
    workspace.run.write(record)
    return record


def _last_turn(workspace: Workspace, policy: Policy, machine: str) -> int:
    """Return the turn that the last measurement of the policy began with."""
    record = workspace.run.find_for(LatencyFile, version_of(workspace.run, policy))
    return record.turn if record is not None and record.machine == machine else 0


def _keep_shipped(workspace: Workspace, policy: Policy, result: Result) -> None:
    """Put the plan that was measured into the run, and into `build.json`, with the kernels where only the device can
    tell them.
    """
    shipped = ship(workspace, result)
    known = workspace.run.find_for(BuildFile, version_of(workspace.run, policy))
    engines, kernels = (known.engines, known.kernels) if known is not None else ({}, {})
    if workspace.builds_on_device and result.layers is not None:
        engine = workspace.run.file(next(iter(workspace.backend.names.engines.values())))
        found = unit_kernels(workspace, policy, result.layers, engine)
        _keep_build(workspace, policy, shipped, _rows(found))
    elif any(name not in engines or engines[name].sha256 != row.sha256 for name, row in shipped.items()):
        _keep_build(workspace, policy, {**engines, **shipped}, kernels)


def timed_row(result: Result) -> TimingRow:
    """Return the file form of a result; only of an engine that was built. UserError when its figures contradict each
    other.
    """
    assert result.state is not None
    figures = (
        "batch",
        "ratio",
        "engine_ms",
        "float_ms",
        "p99_ms",
        "p99_calls",
        "p99_note",
        "throughput",
        "slowdown",
        "clock",
        "enqueue_ms",
        "hot_ms",
        "cold_ms",
    )
    values = {name: getattr(result, name) for name in figures} | {"throttled": result.state.throttled}
    try:
        return msgspec.convert({**values, "ratio_interval": list(result.ratio_interval or ())}, TimingRow)
    except msgspec.ValidationError as error:
        raise UserError(f"the device's figures contradict each other ({error}): measure again") from error


def verify(workspace: Workspace, policy: Policy) -> VerifyFile:
    """Run the evaluation data through every stage. Writes `verify.json`."""
    needs_export(workspace, policy)
    needs_build(workspace, policy)
    record = verify_stages(workspace, policy, version_of(workspace.run, policy))
    workspace.run.write(record)
    return record


def needs_export(workspace: Workspace, policy: Policy) -> None:
    """Raise UserError unless the run holds the exported model of the policy, as it was written."""
    model = workspace.run.file(workspace.backend.names.model)
    if not model.is_file():
        raise UserError(f"{model} is missing: make it with smpq export")
    record = workspace.run.find_for(ExportFile, version_of(workspace.run, policy))
    if record is None:
        raise UserError(f"{model} is not of {policy_text(workspace.run)}: use smpq export first")
    if record.sha256 != sha256(model):
        raise UserError(f"{model} is not the file that smpq export wrote, it has changed since: use smpq export again")


def needs_build(workspace: Workspace, policy: Policy) -> None:
    """Raise UserError unless the run has a built engine of the policy; it says which commands make one."""
    run, version = workspace.run, version_of(workspace.run, policy)
    if run.find_for(BuildFile, version) is not None:
        return
    lacking = f"this run has no engine of {policy_text(run)}"
    if not workspace.builds_on_device:
        try:
            workspace.backend.check_builds_here()
        except UserError as error:
            raise UserError(f"{lacking}, and none can be built here: {error}") from error
    exported = run.file(workspace.backend.names.model).is_file() and run.find_for(ExportFile, version) is not None
    raise UserError(f"{lacking}: use {'' if exported else 'smpq export and '}smpq build first")
