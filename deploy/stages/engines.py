"""Engines of a run: their names, and how they are built and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from calib.errors import UserError
from calib.formats.format import FP16, Format
from deploy.backends import onnxruntime as ort_backend
from deploy.backends import tensorrt as tensorrt_backend
from deploy.backends.onnxruntime.record import OrtEngineRecord
from deploy.devices.places import machine_directory
from deploy.files.engine import BuiltRow
from deploy.lowering.naming import call_name
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import DEVICE, Workspace
from deploy.runner.experiment import CACHE_DIRECTORY
from deploy.runner.state import machine
from deploy.targets.target import Target, check_builds_here
from smpq.problem.policy import Policy

BuildFailed = tensorrt_backend.BuildFailed
Built = TypeVar("Built")


@dataclass(frozen=True)
class Names:
    """File names inside a run: the lowered model, and per compute capability ('' for none) the engine and the float
    engine.

    `product` is the directory of the plan that was measured.
    """

    model: str
    engines: Mapping[str, str]
    float_engines: Mapping[str, str]
    product: str


@dataclass(frozen=True)
class UnitKernel:
    """What one unit became in the engine, and whether that is its planned format."""

    path: str
    kernel: str
    agrees: bool


def engine_names(target: Target) -> Names:
    """Return the names of a target's files."""
    model, product = f"model.{target.name}.onnx", f"engine.{target.name}"
    if target.runtime != "onnxruntime":
        capabilities = target.compute_capabilities or ("",)
        middle = {sm: f".{sm}" if sm else "" for sm in capabilities}
        return Names(
            model,
            {sm: f"engine.{target.name}{part}.plan" for sm, part in middle.items()},
            {sm: f"engine.float{part}.plan" for sm, part in middle.items()},
            product,
        )
    return Names(model, {"": f"engine.{target.name}.onnx"}, {"": "engine.float.onnx"}, product)


class Engines:
    """Builds engines of policies on the target of a run."""

    def __init__(self, workspace: Workspace) -> None:
        """Needs `model.float.onnx` in the run."""
        self._prepared = workspace
        self._names = engine_names(workspace.target)

    def build(self, policy: Policy) -> tuple[dict[str, BuiltRow], list[UnitKernel]]:
        """Build the engine(s) of `model.<target>.onnx` and the float engine(s).

        Returns the build records by file name, and what each unit became. UserError when the runtime refuses a model,
        with its reason.
        """
        if self._prepared.target.runtime != "onnxruntime":
            return self._build_plans(policy)
        return self._build_sessions(policy)

    @property
    def _float_model(self) -> Path:
        return export_float_model(self._prepared)

    @property
    def _reference_model(self) -> Path:
        """The float model as the target's float engine is made of it: lowered when half precision or a fixed batch is
        wanted.
        """
        workspace = self._prepared
        if workspace.target.reference != FP16:
            return self._float_model
        model = workspace.run.file(f"model.float.{workspace.target.name}.onnx")
        workspace.candidates.lower_into(workspace.space.uniform(workspace.space.reference), model)
        return model

    def _build_sessions(self, policy: Policy) -> tuple[dict[str, BuiltRow], list[UnitKernel]]:
        workspace, run = self._prepared, self._prepared.run
        target, exact = workspace.target, workspace.target.lowering == "simulate"
        engine, float_engine = run.file(self._names.engines[""]), run.file(self._names.float_engines[""])
        built = ort_backend.build_engine(run.file(self._names.model), engine, exact=exact, providers=target.providers)
        float_built = ort_backend.build_engine(self._reference_model, float_engine, providers=target.providers)
        records = {
            engine.name: _session_row(_built(built, "the engine")),
            float_engine.name: _session_row(_built(float_built, "the float engine")),
        }
        if target.lowering != "onnxruntime":  # simulated, or one node that is a plan of TensorRT
            return records, []
        kernels = ort_backend.unit_kernels(engine, workspace.space.units)
        checks = ort_backend.check_units(kernels, policy.by_unit(workspace.space.groups))
        return records, [UnitKernel(c.path, c.kernel, c.agrees) for c in checks]

    def _build_plans(self, policy: Policy) -> tuple[dict[str, BuiltRow], list[UnitKernel]]:
        workspace, run = self._prepared, self._prepared.run
        check_builds_here(workspace.target)
        runtime = workspace.target.runtime
        float_model = self._reference_model
        # where this machine keeps the plans that it times, so that the plan that is built here is the one that is timed
        cache = machine_directory(run.file(DEVICE), machine()) / CACHE_DIRECTORY
        records: dict[str, BuiltRow] = {}
        found: list[UnitKernel] = []
        for sm, name in self._names.engines.items():
            jobs = {name: run.file(self._names.model), self._names.float_engines[sm]: float_model}
            for plan, model in jobs.items():
                with workspace.progress.step(f"build {plan}"):
                    asked = sm if runtime == "tensorrt-rtx" and sm else None  # tensorrt builds for its own GPU
                    record = _built(
                        tensorrt_backend.build_plan(model, run.file(plan), runtime, asked, cache=cache), plan
                    )
                records[plan] = _plan_row(record)
                if plan == name:
                    found += plan_kernels(workspace, policy, record.kernels, f" ({sm})" if sm else "")
        return records, _worst(found)


def plan_kernels(
    workspace: Workspace, policy: Policy, kernels: Sequence[tensorrt_backend.PlanKernel], where: str = ""
) -> list[UnitKernel]:
    """Return what each unit became in a plan of TensorRT that consists of `kernels`; `where` is added to what is not as
    planned.
    """
    formats = policy.by_unit(workspace.space.groups)
    planned: dict[str, Format] = {
        call_name(unit.path, index): formats[unit.path]
        for unit in workspace.space.units
        for index in range(len(unit.calls))
    }
    checks = tensorrt_backend.check_units(kernels, planned)
    return _worst(
        UnitKernel(check.path.partition("#")[0], check.found if check.agrees else f"{check.found}{where}", check.agrees)
        for check in checks
    )


def _worst(kernels: Iterable[UnitKernel]) -> list[UnitKernel]:
    """Return one kernel for each unit: one that is not as planned, where there is such a one."""
    found: dict[str, UnitKernel] = {}
    for kernel in kernels:
        if kernel.path not in found or (found[kernel.path].agrees and not kernel.agrees):
            found[kernel.path] = kernel
    return list(found.values())


def _session_row(record: OrtEngineRecord) -> BuiltRow:
    return BuiltRow(
        sha256=record.sha256,
        size_bytes=record.size_bytes,
        build_seconds=record.build_seconds,
        versions=dict(record.versions),
    )


def _plan_row(record: tensorrt_backend.BuildRecord) -> BuiltRow:
    return BuiltRow(
        sha256=record.plan_sha256,
        size_bytes=record.plan_bytes,
        build_seconds=record.seconds,
        versions={record.runtime: record.runtime_version},
        from_cache=record.from_cache,
        warnings=record.warnings,
    )


def _built(result: Built | BuildFailed, what: str) -> Built:
    """Return a build record; a failed build becomes an error that carries the runtime's own reason."""
    if isinstance(result, BuildFailed):
        raise UserError(f"{what} does not build: {result.reason}")
    return result
