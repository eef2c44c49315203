"""What every back end does, and the registry of back ends."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy.typing as npt

from calib.errors import UserError
from calib.formats.format import Format
from calib.network.units import Unit
from deploy.devices.messages import Layer
from deploy.files.engine import BuiltRow
from deploy.files.profile import ProfiledKernel, ProfiledUnit
from deploy.lowering.lower import Lowering, LoweringReport, lower
from deploy.targets.target import Target
from smpq.quantized.plan import QuantPlan

Arrays = Sequence[npt.NDArray[Any]]


@dataclass(frozen=True)
class EngineNames:
    """File names inside a run: the lowered model, and per compute capability ('' for none) the engine and the float
    engine. `product` is the directory of the plan that was measured.
    """

    model: str
    engines: Mapping[str, str]
    float_engines: Mapping[str, str]
    product: str


@dataclass(frozen=True)
class Built:
    """An engine that was built: its record, its layers and the bytes of its weights where the builder told them."""

    row: BuiltRow
    layers: tuple[Layer, ...] = ()
    weights_bytes: int | None = None


@dataclass(frozen=True)
class BuildFailed:
    """The runtime refused the file: the reason in its own words."""

    reason: str


@dataclass(frozen=True)
class OpenEngine:
    """An engine that takes arrays in the order of the model's inputs and returns all outputs. `batch` is the only batch
    size that it takes, None for any. `any_thread`: another thread than the one that opened it may run it, while that
    one computes something else.
    """

    run: Callable[[Arrays], list[npt.NDArray[Any]]]
    batch: int | None
    any_thread: bool = False


@dataclass(frozen=True)
class UnitKernel:
    """What one unit became in the engine, and whether that is its planned format."""

    path: str
    kernel: str
    agrees: bool


class BuildTool(Protocol):
    """A program of the runtime's maker that builds an ONNX file, and runs a plan."""

    def build(
        self, model: Path, shapes: Sequence[str], compute_capabilities: Sequence[str], times: Path | None
    ) -> tuple[str, ...]:
        """Return the commands; `shapes` are options for a free batch, `times` measured kernel times to use again."""
        ...

    def load(self, plan: Path) -> str:
        """Return the command that times a plan."""
        ...


class Backend(ABC):
    """Lowers, builds and opens engines of one target, and says what became of each layer."""

    suffix: ClassVar[str] = "onnx"
    """Of an engine's file."""
    in_onnxruntime: ClassVar[bool] = False
    """Whether a model that ONNX Runtime does not load has no engine."""
    tool: ClassVar[BuildTool | None] = None
    """What builds the file of `smpq export --format onnx-qdq`; None where nothing but smpq does."""

    def __init__(self, target: Target) -> None:
        """Serve one target."""
        self.target = target

    @property
    def names(self) -> EngineNames:
        """The target's files."""
        name, suffix = self.target.name, self.suffix
        middle = {sm: f".{sm}" if sm else "" for sm in self.target.compute_capabilities or ("",)}
        return EngineNames(
            f"model.{name}.onnx",
            {sm: f"engine.{name}{part}.{suffix}" for sm, part in middle.items()},
            {sm: f"engine.float{part}.{suffix}" for sm, part in middle.items()},
            f"engine.{name}",
        )

    @property
    @abstractmethod
    def lowering(self) -> Lowering:
        """What the runtime wants of an ONNX file."""

    def lower(
        self, float_model: Path, plan: QuantPlan, units: Sequence[Unit], out: Path, batch: int | None = 1
    ) -> LoweringReport:
        """Write the model of a plan; see `deploy.lowering.lower.lower`."""
        return lower(float_model, plan, units, self.lowering, out, batch)

    @abstractmethod
    def build(self, model: Path, engine: Path, sm: str = "", cache: Path | None = None) -> Built | BuildFailed:
        """Build a lowered file into `engine`; `sm` is the GPU that it is for, `cache` keeps what need not be built
        twice.

        UserError when the file is missing, or when this machine lacks something, with what to install.
        """

    @abstractmethod
    def open(self, engines: Mapping[str, Path], inputs: Sequence[str], batch: int, threads: int) -> OpenEngine | str:
        """Open the engine for this machine, of those by compute capability; returns why none runs here otherwise.

        `inputs` are the names of the model's inputs. UserError when a file is missing or damaged.
        """

    def open_lowered(
        self, model: Path, settings: Mapping[str, Any], inputs: Sequence[str], batch: int, threads: int, cache: Path
    ) -> OpenEngine | str:
        """Open an engine of a lowered file, as a device does that times it with these settings; returns why none runs
        here otherwise. `cache` is where this machine keeps what it has built.
        """
        with tempfile.TemporaryDirectory() as directory:
            engine = Path(directory) / f"engine.{self.suffix}"
            built = self.build(model, engine, cache=cache)
            return built.reason if isinstance(built, BuildFailed) else self.open({"": engine}, inputs, batch, threads)

    def quantize_itself(
        self, float_model: Path, out: Path, feeds: Iterable[dict[str, npt.NDArray[Any]]]
    ) -> dict[str, Any] | BuildFailed | None:
        """Write what the runtime's own quantiser makes of a float model and of calibration batches by input name;
        returns the settings for its engine. None where the runtime has no quantiser of its own.
        """
        return None

    def unit_kernels(
        self, engine: Path, layers: Sequence[Layer], units: Sequence[Unit], formats: Mapping[str, Format]
    ) -> list[UnitKernel]:
        """Return what each unit became, from the engine's file or from its layers; `formats` are planned, by unit.

        Empty where nobody can tell.
        """
        return []

    def settings(self, model: Path) -> dict[str, Any]:
        """Return the settings of `deploy.runner` for an engine of a lowered file."""
        return {}

    def check_builds_here(self) -> None:
        """Raise UserError when only another machine may build engines of the target."""

    @property
    def builds_for_devices(self) -> bool:
        """Whether this machine can build an engine that runs on another one."""
        return True

    def why_not_timed(self) -> str | None:
        """Return why this machine cannot time engines of the target, None when it can."""
        if not self.target.timed:
            return f"{self.target.name} has no engine to time"
        try:
            self.check_timed_here()
        except UserError as error:
            return str(error)
        return None

    def check_timed_here(self) -> None:
        """Raise UserError when this machine cannot time engines of the target."""

    def check_profiled(self) -> None:
        """Raise UserError where no profiler tells the time of each layer, with what to use instead."""
        raise UserError(f"smpq profile knows no profiler for engines of {self.target.name}")

    def profiled(
        self, layers: Sequence[Layer], planned: Mapping[str, Format]
    ) -> tuple[tuple[ProfiledKernel, ...], dict[str, ProfiledUnit]]:
        """Return the kernels of a profile, and the layers of the model; `planned` is by the name of the ONNX node."""
        raise NotImplementedError(f"{type(self).__name__} has no profiler")


BACKENDS: dict[str, type[Backend]] = {}
_Class = TypeVar("_Class", bound=type[Backend])


def backend(name: str) -> Callable[[_Class], _Class]:
    """Register a back end under the name that a target's table gives as `backend`.

    1. Write a subclass of `Backend` in a folder of its own below `deploy/backends`, and import it in
       `deploy.backends`. It needs `lowering`, `build` and `open`; the other methods say what else the runtime can do.
    2. Write a table for its target into `deploy/targets/capabilities`: which formats are real on which operator, how
       they are known, and what the target's runtime wants quantised (`deploy.targets.families`).
    3. The table's `runtime` names what times an engine on a device: one of `deploy.runner.bench.OPENERS`, or a file of
       your own there.
    4. Load the runtime inside the methods, so that the others work where it is not installed.

    `tests/deploy/backends/thrown_away.py` is the smallest one.
    """

    def register(kind: _Class) -> _Class:
        BACKENDS[name] = kind
        return kind

    return register


def worst(kernels: Iterable[UnitKernel]) -> list[UnitKernel]:
    """Return one kernel for each unit: one that is not as planned, where there is such a one."""
    found: dict[str, UnitKernel] = {}
    for kernel in kernels:
        if kernel.path not in found or (found[kernel.path].agrees and not kernel.agrees):
            found[kernel.path] = kernel
    return list(found.values())
