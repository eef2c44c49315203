"""Engines of a run: their names, how they are built, and how one is timed against the float engine."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.errors import UserError
from calib.formats import Format
from deploy.backends import onnxruntime as ort_backend
from deploy.backends import tensorrt as tensorrt_backend
from deploy.backends.onnxruntime import OrtEngine
from deploy.export import call_name
from deploy.latency import Observation
from deploy.lower import lower
from deploy.measure import Call, Measurement, Protocol, measure_interleaved
from deploy.prepare import Prepared
from deploy.targets import Target
from smpq.policy import Policy

BuildFailed = tensorrt_backend.BuildFailed
FLOAT = "float"
MIXED = "engine"
_THOROUGH = Protocol(rounds=41, round_ms=15.0)


@dataclass(frozen=True)
class Names:
    """File names inside a run: the lowered model, and per compute capability ('' for none) the engine and the float engine."""

    model: str
    engines: Mapping[str, str]
    float_engines: Mapping[str, str]


@dataclass(frozen=True)
class Kernel:
    """What one unit became in the engine, and whether that is its planned format."""

    path: str
    kernel: str
    agrees: bool


def engine_names(target: Target) -> Names:
    """Return the names of a target's files."""
    model = f"model.{target.name}.onnx"
    if target.runtime != "onnxruntime":
        capabilities = target.compute_capabilities or ("",)
        middle = {capability: f".{capability}" if capability else "" for capability in capabilities}
        return Names(
            model,
            {capability: f"engine.{target.name}{part}.plan" for capability, part in middle.items()},
            {capability: f"engine.float{part}.plan" for capability, part in middle.items()},
        )
    return Names(model, {"": f"engine.{target.name}.onnx"}, {"": "engine.float.onnx"})


class Engines:
    """Builds and times engines of policies on the target of a run."""

    def __init__(self, prepared: Prepared) -> None:
        """Needs `model.float.onnx` in the run."""
        self._prepared = prepared
        self._names = engine_names(prepared.target)

    def build(self, policy: Policy) -> tuple[dict[str, Any], list[Kernel]]:
        """Build the engine(s) of `model.<target>.onnx` and the float engine(s).

        Returns the build records by file name, and what each unit became. UserError when the runtime refuses a model, with its reason.
        """
        if self._prepared.target.runtime != "onnxruntime":
            return self._build_plans(policy)
        return self._build_sessions(policy)

    def observe(self, policy: Policy) -> Observation:
        """Build a policy's engine on the side, time it interleaved with the float engine, and keep nothing but the ratio."""
        prepared = self._prepared
        with tempfile.TemporaryDirectory() as directory:
            model, engine = Path(directory) / "model.onnx", Path(directory) / "engine.onnx"
            units = prepared.space.units
            lower(self._float_model, prepared.plan(policy), units, prepared.target, model, prepared.settings.batch)
            _built(ort_backend.build_engine(model, engine), "the engine of a candidate policy")
            loaded = ort_backend.load_engine(engine)
            measurement = self._time(loaded, Protocol())
        timing = measurement.timings[MIXED]
        low, high = timing.ratio_interval
        return Observation(policy, timing.ratio, (high - low) / (2 * 1.96))

    def measure(self) -> Measurement:
        """Time the run's engine against its float engine, thoroughly."""
        self._needs_cpu("measuring")
        engine = self._prepared.run.file(self._names.engines[""])
        if not engine.is_file():
            raise UserError(f"{engine} is missing: build it with smpq build")
        return self._time(ort_backend.load_engine(engine), _THOROUGH)

    def float_ms(self) -> float:
        """Return what the float engine takes for one batch, in milliseconds of CPU time."""
        return self._float_timing.timings[FLOAT].latency_ms

    @cached_property
    def _float_timing(self) -> Measurement:
        return measure_interleaved({FLOAT: self._call(self._float_engine)}, FLOAT, Protocol())

    @cached_property
    def _float_engine(self) -> OrtEngine:
        path = self._prepared.run.file(self._names.float_engines[""])
        _built(ort_backend.build_engine(self._float_model, path), "the float engine")
        return ort_backend.load_engine(path)

    @property
    def _float_model(self) -> Path:
        return self._prepared.run.file("model.float.onnx")

    def _time(self, engine: OrtEngine, protocol: Protocol) -> Measurement:
        calls = {FLOAT: self._call(self._float_engine), MIXED: self._call(engine)}
        return measure_interleaved(calls, FLOAT, protocol, self._prepared.settings.seed)

    def _call(self, engine: OrtEngine) -> Call:
        feeds = dict(zip(engine.input_names, self._inputs, strict=True))
        session = engine.session
        return lambda: session.run(None, feeds)

    @cached_property
    def _inputs(self) -> tuple[npt.NDArray[Any], ...]:
        """One batch of calibration samples of the size that latency is asked for; repeated when there are fewer."""
        wanted = self._prepared.settings.batch
        tensors = [
            np.concatenate([b.inputs[i].numpy() for b in self._prepared.batches])
            for i in range(len(self._prepared.batches[0].inputs))
        ]
        repeats = math.ceil(wanted / len(tensors[0]))
        return tuple(np.ascontiguousarray(np.concatenate([tensor] * repeats)[:wanted]) for tensor in tensors)

    def _needs_cpu(self, what: str) -> None:
        if not self._prepared.target.measurable:
            raise UserError(
                f"{what} on target {self._prepared.target.name} needs the device itself: this version measures on ort-cpu only"
            )

    def _build_sessions(self, policy: Policy) -> tuple[dict[str, Any], list[Kernel]]:
        prepared, run = self._prepared, self._prepared.run
        exact = prepared.target.lowering == "simulate"
        engine, float_engine = run.file(self._names.engines[""]), run.file(self._names.float_engines[""])
        records = {
            engine.name: _built(ort_backend.build_engine(run.file(self._names.model), engine, exact=exact), "the engine"),
            float_engine.name: _built(ort_backend.build_engine(self._float_model, float_engine), "the float engine"),
        }
        if exact:
            return {name: record.to_json() for name, record in records.items()}, []
        kernels = ort_backend.unit_kernels(engine, prepared.space.units)
        checks = ort_backend.check_units(kernels, policy.by_unit(prepared.space.groups))
        return {name: record.to_json() for name, record in records.items()}, [Kernel(c.path, c.kernel, c.agrees) for c in checks]

    def _build_plans(self, policy: Policy) -> tuple[dict[str, Any], list[Kernel]]:
        prepared, run = self._prepared, self._prepared.run
        runtime = prepared.target.runtime
        float_model = run.file(f"model.float.{prepared.target.name}.onnx")
        reference = prepared.space.uniform(prepared.space.reference)
        lower(
            self._float_model, prepared.plan(reference), prepared.space.units, prepared.target, float_model, prepared.settings.batch
        )
        records: dict[str, Any] = {}
        found: dict[str, Kernel] = {}
        formats = policy.by_unit(prepared.space.groups)
        planned: dict[str, Format] = {
            call_name(unit.path, index): formats[unit.path] for unit in prepared.space.units for index in range(len(unit.calls))
        }
        for capability, name in self._names.engines.items():
            jobs = {name: run.file(self._names.model), self._names.float_engines[capability]: float_model}
            for plan, model in jobs.items():
                with prepared.progress.step(f"build {plan}"):
                    record = _built(tensorrt_backend.build_plan(model, run.file(plan), runtime, capability or None), plan)
                records[plan] = record.to_json()
                if plan != name:
                    continue
                for check in tensorrt_backend.check_units(record.kernels, planned):
                    path = check.path.partition("#")[0]
                    where = f"{check.found} ({capability})" if capability else check.found
                    earlier = found.get(path)
                    if earlier is None or (earlier.agrees and not check.agrees):
                        found[path] = Kernel(path, check.found if check.agrees else where, check.agrees)
        return records, list(found.values())


def _built(result: Any, what: str) -> Any:
    """Return a build record; a failed build becomes an error that carries the runtime's own reason."""
    if isinstance(result, BuildFailed):
        raise UserError(f"{what} does not build: {result.reason}")
    return result
