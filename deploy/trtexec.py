"""The quantised model as plain ONNX with Q/DQ nodes, and the trtexec command that builds it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calib.errors import UserError
from calib.units import Unit
from deploy.lower import LoweringReport, lower
from deploy.onnx_files import load_model
from deploy.targets.target import Target
from smpq.plan import QuantPlan

QDQ_MODEL = "model.qdq.onnx"


@dataclass(frozen=True)
class TrtexecExport:
    """The file, the command that builds and times its engine where TensorRT is installed, and what the lowering did."""

    path: Path
    command: str
    report: LoweringReport


def export_for_trtexec(
    float_model: Path,
    plan: QuantPlan,
    units: Sequence[Unit],
    target: Target,
    directory: Path,
    batch_sizes: tuple[int, int, int] = (1, 1, 1),
) -> TrtexecExport:
    """Write `model.qdq.onnx` into `directory`: what TensorRT's own parser reads, with nothing of ours to install.

    1. `batch_sizes` are the smallest, the usual and the largest batch. When they differ the batch stays free, and the command has the
       shapes of an optimisation profile.
    2. `--stronglyTyped` is in every command: TensorRT 10 would choose types of its own without it, TensorRT 11 accepts and ignores it.

    Raises UserError when the plan is of another kind of target (TensorRT reads no uint8 activations), when the batch sizes are not in
    order, and when the model cannot run with them.
    """
    if target.lowering != "tensorrt":
        raise UserError(
            f"trtexec reads plans for tensorrt or tensorrt-rtx, and this run is for {target.name}: search for one of these"
        )
    if not 1 <= batch_sizes[0] <= batch_sizes[1] <= batch_sizes[2]:
        raise UserError(f"batch sizes are the smallest, the usual and the largest, from 1 up, not {batch_sizes}")
    path = directory / QDQ_MODEL
    fixed = batch_sizes[0] == batch_sizes[2]
    if not fixed:
        _check_free(float_model)
    report = lower(float_model, plan, units, target, path, batch_sizes[0] if fixed else None)
    return TrtexecExport(path, _command(path, batch_sizes), report)


def _check_free(float_model: Path) -> None:
    for value in load_model(float_model).graph.inputs:
        batch, *others = value.shape or (1,)
        if isinstance(batch, int):
            raise UserError(
                f"the model only runs with batches of {batch} (it does not trace with a dynamic batch): give that batch"
            )
        if not all(isinstance(size, int) for size in others):
            raise UserError(f"input {value.name} has a free dimension besides the batch: trace the model with one size")


def _command(path: Path, batch_sizes: tuple[int, int, int]) -> str:
    arguments = [f"--onnx={path}", f"--saveEngine={path.with_suffix('.engine')}", "--stronglyTyped"]
    if batch_sizes[0] != batch_sizes[2]:
        inputs = list(load_model(path).graph.inputs)
        for option, batch in zip(("minShapes", "optShapes", "maxShapes"), batch_sizes, strict=True):
            arguments.append(f"--{option}=" + ",".join(_shape(value, batch) for value in inputs))
    return shlex.join(["trtexec", *arguments])


def _shape(value: ir.Value, batch: int) -> str:
    """`name:1x3x224x224`, as trtexec reads it."""
    return f"{value.name}:" + "x".join(map(str, (batch, *list(value.shape or ())[1:])))
