"""TensorRT and TensorRT-RTX as back ends: an engine is a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from calib.errors import UserError
from calib.formats.format import Format
from calib.network.units import Unit
from deploy.backends.base import Backend, BuildFailed, BuildTool, Built, OpenEngine, UnitKernel, backend, worst
from deploy.backends.tensorrt.build import build_plan, free_sizes
from deploy.backends.tensorrt.check import check_units
from deploy.backends.tensorrt.execution import PlanRunner, gpu_sm
from deploy.backends.tensorrt.lowering import for_tensorrt
from deploy.backends.tensorrt.profile import profiled
from deploy.backends.tensorrt.tools import RtxTool, Trtexec
from deploy.devices.messages import Layer
from deploy.files.profile import ProfiledKernel, ProfiledUnit
from deploy.lowering.lower import Lowering
from deploy.lowering.naming import call_names
from deploy.runner.cuda import open_cuda
from deploy.runner.errors import DeviceError
from deploy.targets.families import FAMILIES
from deploy.targets.installed import installed_version
from deploy.targets.rules import version_fits


@backend("tensorrt")
class TensorRt(Backend):
    """TensorRT builds a plan for the GPU and the version that it runs on."""

    suffix = "plan"
    tool: ClassVar[BuildTool | None] = Trtexec()

    @property
    def lowering(self) -> Lowering:
        """What TensorRT wants of a file."""
        return for_tensorrt(self.target)

    def build(self, model: Path, engine: Path, sm: str = "", cache: Path | None = None) -> Built | BuildFailed:
        """Build a plan for the GPU of this machine, whatever `sm` says."""
        return build_plan(model, engine, self.target.runtime, cache=cache)

    def open(self, engines: Mapping[str, Path], inputs: Sequence[str], batch: int, threads: int) -> OpenEngine | str:
        """Open the plan for the GPU of this machine."""
        try:
            sm = gpu_sm()
        except UserError as error:
            return str(error)
        plan = engines.get(sm, engines.get(""))
        if plan is None:
            return (
                f"the run has plans for {', '.join(engines)}, and the GPU of this machine is {sm}: build for it with "
                f"--sm {sm}"
            )
        return OpenEngine(PlanRunner(plan, self.target.runtime, inputs).run, batch)

    def settings(self, model: Path) -> dict[str, Any]:
        """Return the sizes that inputs may have, where they have no single ones."""
        sizes = free_sizes(model)
        return {"sizes": sizes} if sizes is not None else {}

    def unit_kernels(
        self, engine: Path, layers: Sequence[Layer], units: Sequence[Unit], formats: Mapping[str, Format]
    ) -> list[UnitKernel]:
        """Compare the layers with the plan."""
        planned = {name: formats[unit.path] for unit in units for name in call_names(unit).values()}
        checks = check_units(layers, planned)
        return worst(UnitKernel(check.path.partition("#")[0], check.found, check.agrees) for check in checks)

    @property
    def builds_for_devices(self) -> bool:
        """No: only the device has its GPU."""
        return False

    def check_builds_here(self) -> None:
        """UserError when the target is another version than the one that is installed, or one that is too old."""
        target, family = self.target, FAMILIES[self.target.family]
        if target.version is None:
            return
        if family.oldest is not None and not version_fits(target.version, f">={family.oldest}"):
            raise UserError(f"TensorRT {target.version} is installed here: {family.oldest} or a newer one is needed")
        installed = installed_version(target.runtime, family.packages) or "none"
        wanted = target.version.split(".")
        if installed.split(".")[: len(wanted)] != wanted:
            raise UserError(
                f"{target.name} is TensorRT {target.version}, and {installed} is installed here: its engines are built "
                "on the device (smpq run --device, or smpq bundle); smpq score, solve and export work here"
            )

    def check_timed_here(self) -> None:
        """UserError when the version is another one, or there is no GPU."""
        self.check_builds_here()
        try:
            open_cuda().close()
        except DeviceError as error:
            raise UserError(
                f"timing an engine of {self.target.name} needs its GPU ({error}): name the machine that has it with "
                "--device, or use smpq bundle"
            ) from error

    def check_profiled(self) -> None:
        """The inspector names the layers, and the profiler times them."""

    def profiled(
        self, layers: Sequence[Layer], planned: Mapping[str, Format]
    ) -> tuple[tuple[ProfiledKernel, ...], dict[str, ProfiledUnit]]:
        """Return what each kernel is for."""
        return profiled(layers, planned)


@backend("tensorrt-rtx")
class TensorRtRtx(TensorRt):
    """TensorRT-RTX builds for other GPUs too, and needs none."""

    tool = RtxTool()

    def build(self, model: Path, engine: Path, sm: str = "", cache: Path | None = None) -> Built | BuildFailed:
        """Build a plan for `sm`, or for all GPUs without one."""
        return build_plan(model, engine, self.target.runtime, sm or None, cache=cache)

    @property
    def builds_for_devices(self) -> bool:
        """Yes: the plan is for the compute capability that it was asked for."""
        return True
