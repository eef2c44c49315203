"""The commands that make an engine: export, build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from calib.declared import Declared, Group, Interval, OneOf
from deploy.commands.declared_options import declared_options
from deploy.commands.options import Result, command, printed, run_argument
from deploy.run.settings import LARGEST_BATCH

_FORMS = ("target", "onnx-qdq")


@dataclass(frozen=True)
class _Own:
    """What these commands take besides settings."""

    form: Annotated[
        str,
        Declared(
            "what is written (onnx-qdq: plain Q/DQ nodes for trtexec, with its command)",
            OneOf(_FORMS),
            "--format",
            Group.WHAT,
        ),
    ] = "target"
    batches: Annotated[
        tuple[int, ...],
        Declared(
            "with onnx-qdq: one batch size, or three (smallest, usual, largest)",
            Interval(1, LARGEST_BATCH),
            "--batch",
            Group.WHAT,
        ),
    ] = ()


@command("export")
@run_argument
@declared_options(_Own)
@printed
# `format` is the option's name
def export(run: Path, task: str | None, format: str, batch: tuple[int, ...], progress: Any) -> Result:  # noqa: A002
    """Write policy.json as ONNX with Q/DQ nodes, in the form that the target turns into integer kernels:
    model.<target>.onnx.
    """
    from deploy.stages.making import export as export_stage
    from deploy.stages.making import export_qdq
    from deploy.stages.policies import read_policy
    from deploy.stages.run_all import open_run

    workspace = open_run(run, progress, task=task)
    if format == "target":
        path = export_stage(workspace, read_policy(workspace))
        return {"model": str(path)}, [f"model: {path}"], 0
    exported = export_qdq(workspace, read_policy(workspace), batch)
    record = {"model": str(exported.path), "build": list(exported.build), "measured": exported.measured}
    measured = [f"the plan that was measured: {exported.measured}"] if exported.measured is not None else []
    return record, [f"model: {exported.path}", *exported.build, *measured], 0


@command("build")
@run_argument
@printed
def build(run: Path, task: str | None, progress: Any) -> Result:
    """Build the engine and the float engine, and check what every layer became: engine.<target>.*, engine.float.*,
    build.json.
    """
    from deploy.stages.making import build as build_stage
    from deploy.stages.policies import read_policy
    from deploy.stages.run_all import open_run

    workspace = open_run(run, progress, task=task)
    record = build_stage(workspace, read_policy(workspace))
    lines = [f"engine: {run / name}" for name in record.engines]
    lines += [
        f"  {path}: {row.kernel}{'' if row.agrees else '  (not as planned)'}" for path, row in record.kernels.items()
    ]
    return record, lines, 0
