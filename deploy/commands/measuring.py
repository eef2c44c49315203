"""The commands that time engines, here or on a device: measure, profile, bundle, feedback, doctor."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from calib.declared import NOT_BLANK, Declared, Group
from deploy.commands.declared_options import declared_options
from deploy.commands.options import (
    NOT_MET,
    WRONG_INPUT,
    Result,
    Shared,
    command,
    printed,
    resource_options,
    run_argument,
)


@dataclass(frozen=True)
class _Own:
    """What these commands take besides settings."""

    target: Annotated[
        str | None,
        Declared(
            "judge by what this target needs, e.g. jetson-orin",
            NOT_BLANK,
            "--target",
            Group.WHERE,
            unset="any target will do",
        ),
    ] = None


@command("measure")
@run_argument
@declared_options(Shared, "batches", "device")
@printed
def measure(run: Path, task: str | None, batch: tuple[int, ...], device: str, progress: Any) -> Result:
    """Time the engine against the float engine anew: interleaved rounds, intervals, p99 of single calls. Writes
    latency.json.

    More rounds are made where the latency is within that of the budget and only chance decides about it.
    """
    from deploy.report.remarks import timing_remarks
    from deploy.stages.making import measure_again
    from deploy.stages.policies import read_policy
    from deploy.stages.run_all import open_run
    from deploy.stages.shipping import shipped

    with open_run(run, progress, device=device, task=task) as workspace:
        record = measure_again(workspace, read_policy(workspace), batch)
        product = shipped(workspace)
    lines = [
        f"batch {row.batch}: {row.ratio:.3f}x of float [{row.ratio_interval.low:.3f}, {row.ratio_interval.high:.3f}]: "
        f"{row.engine_ms:.4g} ms{_tail(row)} against {row.float_ms:.4g} ms, {row.throughput:.4g} samples/s"
        for row in (record.measurement, *record.batches)
    ]
    lines += [
        f"batch {row.batch}: {remark}"
        for row in (record.measurement, *record.batches)
        for remark in timing_remarks(row)
    ]
    lines.append(f"on {record.machine}, {record.measurement.clock}")
    if product is not None:
        lines.append(f"engine: {product}")
    return record, lines, 0


def _tail(row: Any) -> str:
    return f" (p99 of {row.p99_calls} single calls {row.p99_ms:.4g})" if row.p99_ms is not None else ""


@command("profile")
@run_argument
@declared_options(Shared, "device")
@printed
def profile(run: Path, task: str | None, device: str, progress: Any) -> Result:
    """Show where the time of the engine goes on an NVIDIA GPU: by kernel, beside what was planned. Writes profile.json,
    profile.svg.

    Reads what smpq measure has found on the device, and measures only where that is missing.
    """
    from deploy.report.profile_lines import profile_lines
    from deploy.stages.policies import read_policy
    from deploy.stages.profiling import PICTURE
    from deploy.stages.profiling import profile as profile_stage
    from deploy.stages.run_all import open_run

    with open_run(run, progress, device=device, task=task) as workspace:
        record = profile_stage(workspace, read_policy(workspace))
    return record, [*profile_lines(record), f"picture: {run / PICTURE}"], 0


@command("bundle")
@run_argument
@declared_options(Shared, "directory", "next_budget")
@resource_options
@printed
def bundle(run: Path, task: str | None, directory: Path, budget: str | None, progress: Any, resources: Any) -> Result:
    """Write the engines to measure next into DIRECTORY, with a runner for a device that this machine cannot reach.

    Carry it there, run python3 runner.pyz, carry measurements.json back, and go on with smpq feedback.
    """
    from deploy.stages.bundling import write_next_bundle
    from deploy.stages.run_all import open_run

    with open_run(run, progress, resources=resources, task=task) as workspace:
        record = write_next_bundle(workspace, budget, directory)
    count = len(record.candidates)
    return (
        record,
        [
            (
                f"bundle: {directory} ({count} engines); on the device: python3 runner.pyz; then: smpq feedback "
                f"{shlex.quote(str(run))} measurements.json"
            )
        ],
        0,
    )


@command("feedback")
@run_argument
@declared_options(Shared, "measurements")
@resource_options
@printed
def feedback(run: Path, task: str | None, measurements: Path, progress: Any, resources: Any) -> Result:
    """Take in the MEASUREMENTS of a bundle: policy.json is the best policy that they show, and the model for the target
    is exported.

    Says whether other engines should be measured. Exit code 1 means that no engine has met the budget yet.
    """
    from deploy.stages.bundling import take_feedback
    from deploy.stages.run_all import open_run

    with open_run(run, progress, resources=resources, task=task) as workspace:
        record = take_feedback(workspace, measurements)
    state = "meets the budget" if record.met else "does not meet the budget"
    following = (
        f"{record.proposals} more engines should be measured: smpq bundle {shlex.quote(str(run))} DIRECTORY"
        if record.proposals
        else record.stop_reason
    )
    lines = [
        f"policy: {run / 'policy.json'} (measured {record.ratio:.3f}x of float, {state})",
        f"model: {record.model}",
        *([f"engine: {record.engine} beside the measurements on the device"] if record.engine is not None else []),
        following,
    ]
    return record, lines, 0 if record.met else NOT_MET


@command("doctor")
@declared_options(Shared, "device")
@declared_options(_Own, "target")
@printed
def doctor(device: str, target: str | None, progress: Any) -> Result:
    """Say what this machine or a device has, what works there, and the exact commands that mend what does not.

    Looks at Python, driver, GPUs, clocks, TensorRT, ONNX Runtime, packages, memory and disk. Nothing is left on a
    device. Exit code 2 means that something has to be changed first.
    """
    from deploy.doctor.examine import examine
    from deploy.doctor.text import doctor_lines

    with progress.step(f"examine {device or 'this machine'}"):
        record = examine(device, target)
    return record, doctor_lines(record), 0 if record.met else WRONG_INPUT
