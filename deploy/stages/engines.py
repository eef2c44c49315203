"""Engines of a run: built by the target's back end, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calib.errors import UserError
from deploy.backends.base import BuildFailed, Built, UnitKernel, worst
from deploy.devices.messages import Layer
from deploy.devices.places import machine_directory
from deploy.files.engine import BuiltRow
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import DEVICE, Workspace
from deploy.runner.experiment import CACHE_DIRECTORY
from deploy.runner.state import machine
from smpq.problem.policy import Policy


def build_engines(workspace: Workspace, policy: Policy) -> tuple[dict[str, BuiltRow], list[UnitKernel]]:
    """Build the engine(s) of `model.<target>.onnx` and the float engine(s). Needs `model.float.onnx` in the run.

    Returns the build records by file name, and what each unit became. UserError when the runtime refuses a model, with
    its reason.
    """
    run, names = workspace.run, workspace.backend.names
    workspace.backend.check_builds_here()
    model, float_model = run.file(names.model), _reference_model(workspace)
    records: dict[str, BuiltRow] = {}
    kernels: list[UnitKernel] = []
    for sm, name in names.engines.items():
        built = _built(workspace, model, name, sm)
        float_built = _built(workspace, float_model, names.float_engines[sm], sm)
        records |= {name: built.row, names.float_engines[sm]: float_built.row}
        found = unit_kernels(workspace, policy, built.layers, run.file(name))
        kernels += [_on(kernel, sm) for kernel in found] if sm else found
    return records, worst(kernels)


def unit_kernels(workspace: Workspace, policy: Policy, layers: Sequence[Layer], engine: Path) -> list[UnitKernel]:
    """Return what each unit became in an engine; `layers` are as its builder, or the device, told them."""
    formats = policy.by_unit(workspace.space.groups)
    return workspace.backend.unit_kernels(engine, layers, workspace.space.units, formats)


def _reference_model(workspace: Workspace) -> Path:
    """Return the float model as the target's float engine is made of it."""
    source = export_float_model(workspace)
    if workspace.backend.lowering.keeps_float:
        return source
    model = workspace.run.file(f"model.float.{workspace.target.name}.onnx")
    workspace.candidates.lower_into(workspace.space.uniform(workspace.space.reference), model)
    return model


def _built(workspace: Workspace, model: Path, name: str, sm: str) -> Built:
    # where this machine keeps the plans that it times, so that the plan that is built here is the one that is timed
    cache = machine_directory(workspace.run.file(DEVICE), machine()) / CACHE_DIRECTORY
    with workspace.progress.step(f"build {name}"):
        result = workspace.backend.build(model, workspace.run.file(name), sm, cache)
    if isinstance(result, BuildFailed):
        raise UserError(f"{name} does not build: {result.reason}")
    return result


def _on(kernel: UnitKernel, sm: str) -> UnitKernel:
    """Name the GPU of a kernel that is not as planned."""
    return kernel if kernel.agrees else replace(kernel, kernel=f"{kernel.kernel} ({sm})")
