"""Profile: where the time of the chosen engine goes, kernel by kernel, on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping

from calib.errors import UserError
from calib.files.storage import write_bytes
from calib.formats.format import Format
from deploy.backends import backend_of
from deploy.devices.bundle import asked_of
from deploy.devices.known import read_known
from deploy.devices.messages import Result
from deploy.devices.places import machine_directory
from deploy.files.engine import LatencyFile
from deploy.files.profile import ProfileFile
from deploy.latency.bench import FINAL
from deploy.lowering.naming import call_names
from deploy.report.profile_plot import profile_svg
from deploy.run.workspace import DEVICE, Workspace
from deploy.stages.finetuning import version_of
from deploy.stages.making import needs_export
from deploy.targets.target import Target
from smpq.problem.policy import Policy

PICTURE = "profile.svg"


def profile(workspace: Workspace, policy: Policy) -> ProfileFile:
    """Read or measure the time of each kernel of the policy's engine. Writes `profile.json` and `profile.svg`.

    An engine that was measured with its layers is not measured again. UserError when the target has no profile, the
    engine is not exported, cannot be timed here, or its layers were not told.
    """
    workspace.backend.check_profiled()
    needs_export(workspace, policy)
    result, machine = _measured(workspace, policy)
    if result.failed is not None:
        raise UserError(f"the engine cannot be timed: {result.failed}")
    formats = policy.by_unit(workspace.space.groups)
    planned = {name: formats[unit.path] for unit in workspace.space.units for name in call_names(unit).values()}
    record = profile_of(workspace.target, result, planned, machine, version_of(workspace.run, policy))
    workspace.run.write(record)
    write_bytes(workspace.run.file(PICTURE), profile_svg(record).encode(errors="replace"))
    return record


def profile_of(target: Target, result: Result, planned: Mapping[str, Format], machine: str, policy: str) -> ProfileFile:
    """Return the profile of a measured engine; UserError when its layers or their times were not told."""
    if not result.layers or not any(layer.ms for layer in result.layers):
        why = f" ({'; '.join(result.notes)})" if result.notes else ""
        raise UserError(
            f"the engine was measured on {machine}, and the times of its layers were not told{why}: measure it again "
            "there"
        )
    assert result.clock is not None
    assert result.engine_ms is not None
    assert result.float_ms is not None
    kernels, units = backend_of(target).profiled(result.layers, planned)
    return ProfileFile(
        policy=policy,
        target=target.name,
        machine=machine,
        clock=result.clock,
        engine_ms=result.engine_ms,
        float_ms=result.float_ms,
        enqueue_ms=result.enqueue_ms,
        profiled_ms=sum(layer.ms for layer in result.layers if layer.ms is not None),
        kernels=kernels,
        units=units,
    )


def _measured(workspace: Workspace, policy: Policy) -> tuple[Result, str]:
    """Return the result of the engine, and the machine; of an earlier measurement where the run has one with layers."""
    bench = workspace.bench
    candidate = workspace.candidates.kept(workspace.run.file(workspace.backend.names.model))
    latency = workspace.run.find_for(LatencyFile, version_of(workspace.run, policy))
    turn = latency.turn if latency is not None else 0
    if latency is not None and workspace.times_here:
        place = machine_directory(workspace.run.file(DEVICE), latency.machine)
        known = read_known(place, asked_of(bench.experiment([candidate], FINAL, turn=turn)))
        for result in known.values():
            if result.layers:
                return result, latency.machine
    if workspace.not_measurable is not None:
        raise UserError(workspace.not_measurable)
    with workspace.progress.step("measure the engine"):
        (result,) = bench.time([candidate], FINAL, turn=turn)
    return result, bench.machine
