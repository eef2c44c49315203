"""The quantised model as plain ONNX with Q/DQ nodes, and the commands of NVIDIA's own tools that build and time its
engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calib.errors import UserError
from calib.network.units import Unit
from deploy.backends import backend_of
from deploy.devices.products import find_product
from deploy.lowering.export import read_sizes
from deploy.lowering.lower import LoweringReport
from deploy.lowering.onnx_files import load_model, sha256
from deploy.runner.product import ENGINE_PLAN, TIMING_CACHE
from deploy.targets.target import Target
from smpq.quantized.plan import QuantPlan

QDQ_MODEL = "model.qdq.onnx"


@dataclass(frozen=True)
class TrtexecExport:
    """The file, what the lowering did, and commands for the machine that has the GPU.

    1. `build` builds and times the file's engine with the settings that engines are measured with here: one command, or
       for tensorrt-rtx one for each compute capability.
    2. `measured` times the very plan that was measured; None where the run has none of this file.
    """

    path: Path
    build: tuple[str, ...]
    measured: str | None
    report: LoweringReport


def export_for_trtexec(
    float_model: Path,
    plan: QuantPlan,
    units: Sequence[Unit],
    target: Target,
    directory: Path,
    batch_sizes: tuple[int, int, int] = (1, 1, 1),
    product: Path | None = None,
) -> TrtexecExport:
    """Write `model.qdq.onnx` into `directory`: what TensorRT's own parser reads, with nothing of ours to install.

    1. `batch_sizes` are the smallest, the usual and the largest batch. When they differ the batch stays free, and the
       command has the shapes of an optimisation profile.
    2. `product` is where the plan that was measured may be. If it is of this file, trtexec is also handed its kernel
       times, and then chooses the same kernels.

    Raises UserError when the plan is of another kind of target (TensorRT reads no uint8 activations), when the batch
    sizes are not in order, and when the model cannot run with them.
    """
    backend = backend_of(target)
    if backend.tool is None:
        raise UserError(
            f"trtexec reads plans for tensorrt or tensorrt-rtx, and this run is for {target.name}: search for one of "
            "these"
        )
    if not 1 <= batch_sizes[0] <= batch_sizes[1] <= batch_sizes[2]:
        raise UserError(f"batch sizes are the smallest, the usual and the largest, from 1 up, not {batch_sizes}")
    path = directory / QDQ_MODEL
    fixed = batch_sizes[0] == batch_sizes[2]
    if not fixed:
        _check_free(float_model)
    report = backend.lower(float_model, plan, units, path, batch_sizes[0] if fixed else None)
    known = find_product(product) if product is not None else None
    if known is None or known.name != sha256(path)[: len(known.name)]:
        product = None
    times = product / TIMING_CACHE if product is not None and (product / TIMING_CACHE).is_file() else None
    build = backend.tool.build(path, _free_shapes(path, batch_sizes), target.compute_capabilities, times)
    measured = backend.tool.load(product / ENGINE_PLAN) if product is not None else None
    return TrtexecExport(path, build, measured, report)


def _check_free(float_model: Path) -> None:
    model = load_model(float_model)
    sizes = read_sizes(model)
    for value in model.graph.inputs:
        batch, *others = value.shape or (1,)
        if isinstance(batch, int):
            raise UserError(
                f"the model only runs with batches of {batch} (it does not trace with a dynamic batch): give that batch"
            )
        if value.name not in sizes and not all(isinstance(size, int) for size in others):
            raise UserError(f"input {value.name} has a free dimension besides the batch: trace the model with one size")


def _free_shapes(path: Path, batch_sizes: tuple[int, int, int]) -> list[str]:
    """Return the options for a file that has free axes: the least, the usual and the most shapes of its inputs."""
    model = load_model(path)
    inputs, sizes = list(model.graph.inputs), read_sizes(model)
    if all(isinstance(size, int) for value in inputs for size in value.shape or ()):
        return []
    found = []
    for index, name in enumerate(("minShapes", "optShapes", "maxShapes")):
        shapes = ((value, sizes[str(value.name)][index] if sizes else list(value.shape or ())[1:]) for value in inputs)
        found.append(f"--{name}=" + ",".join(_shape(value, [batch_sizes[index], *rest]) for value, rest in shapes))
    return found


def _shape(value: ir.Value, shape: Sequence[object]) -> str:
    """`name:1x3x224x224`, as trtexec reads it."""
    return f"{value.name}:" + "x".join(map(str, shape))
