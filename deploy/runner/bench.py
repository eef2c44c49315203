"""Engines of an experiment's candidates, each timed against the float engine, or a failure with its cause."""

from __future__ import annotations

import errno
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runner.causes import INTERNAL, REFUSED, TRANSIENT, Failure, failure_of
from deploy.runner.errors import DeviceError
from deploy.runner.experiment import CACHE_DIRECTORY, Deaths, check_model, read_inputs, result_key, watched
from deploy.runner.ort import open_ort_engine
from deploy.runner.protocol import Engine, GpuTimed, Protocol, Timing, measure_engines
from deploy.runner.quiet import fastest_of
from deploy.runner.state import REMEMBERED, read_state, throttle_reasons
from deploy.runner.trt_log import TRT_RUNTIMES
from deploy.runner.trt_open import open_trt_engine

OPENERS: Mapping[str, Callable[..., Engine]] = {
    "onnxruntime": open_ort_engine,
    **{runtime: partial(open_trt_engine, runtime) for runtime in TRT_RUNTIMES},
}
"""What times engines of a runtime: a new one is a file here, and a line in this table."""
_MOST_DEATHS = 2
_ATTEMPTS = 2
_MOST_TIMINGS = 3
"""How often an engine is timed while the machine slows down."""
_FLOAT, _CANDIDATE = "float", "candidate"
_NO_FIGURES: Mapping[str, Any] = {
    "clock": None,
    "slowdown": None,
    "ratio": None,
    "ratio_interval": None,
    "engine_ms": None,
    "float_ms": None,
    "p99_ms": None,
    "p99_calls": None,
    "p99_note": None,
    "throughput": None,
    "enqueue_ms": None,
    "hot_ms": None,
    "cold_ms": None,
    "rounds_ms": [],
    "float_rounds_ms": [],
    "build_seconds": None,
    "layers": None,
    "notes": [],
    "state": None,
    "plan_sha256": None,
}


def open_bench(experiment: Mapping[str, Any], directory: Path, *, alone: bool = False) -> Bench:
    """Open the float engine; DeviceError when that fails, whatever the cause: there is nothing to compare with.

    `alone` is that of `deploy.runner.experiment.watched`.
    """
    inputs = read_inputs(directory / experiment["inputs"])
    found = _attempted(lambda: _open(experiment, directory, inputs, experiment["float"]))
    if isinstance(found, Failure):
        verb = "does not build" if found.cause == REFUSED else "was not opened"
        raise DeviceError(f"the float engine {verb}, so there is nothing to compare with: {_named(found)}")
    return Bench(experiment, directory, inputs, found, alone)


@dataclass(frozen=True)
class Bench:
    """What every candidate of an experiment is measured with: the same inputs, and the float engine."""

    experiment: Mapping[str, Any]
    directory: Path
    inputs: Mapping[str, np.ndarray]
    baseline: Engine
    alone: bool = False

    def run_baseline(self) -> None:
        """Run the float engine for a moment; DeviceError when it does not run."""
        found = _attempted(lambda: self.baseline.time(self.experiment["protocol"]["calls"]))
        if isinstance(found, Failure):
            raise DeviceError(f"the float engine does not run ({_named(found)}): start again, what is measured is kept")

    def measure(self, candidate: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Return the result of a candidate; one that cannot be measured has a reason and a cause in place of
        figures. The last of the `earlier` results tell how fast the float engine is when nothing slows it down.
        """
        fastest_ms = _fastest_float_ms(earlier, self.experiment["batch"], self.baseline.clock)
        key = result_key(self.experiment, candidate)
        about = {"key": key, "name": candidate["name"], "batch": self.experiment["batch"]}
        with watched(self.directory, key, alone=self.alone) as deaths:
            found = (
                _given_up(deaths)
                if deaths.times >= _MOST_DEATHS
                else _attempted(lambda: self._figures(candidate, fastest_ms))
            )
        if isinstance(found, Failure):
            return {**about, "failed": _named(found), "cause": found.cause, "nodes": list(found.nodes), **_NO_FIGURES}
        return {**about, "failed": None, "cause": None, "nodes": [], **found}

    def _figures(self, candidate: Mapping[str, Any], fastest_ms: float) -> dict[str, Any]:
        start = time.perf_counter()
        engine = _open(self.experiment, self.directory, self.inputs, candidate)
        build_seconds = time.perf_counter() - start
        try:
            timings, state = self._timed(engine, fastest_ms)
            diagnosed = _diagnosed(engine)
        finally:
            engine.close()
        timing, reference = timings[_CANDIDATE], timings[_FLOAT]
        return {
            "clock": timing.clock,
            "slowdown": timing.slowdown,
            "ratio": timing.ratio,
            "ratio_interval": list(timing.ratio_interval),
            "engine_ms": timing.latency_ms,
            "float_ms": reference.latency_ms,
            "p99_ms": timing.p99_ms,
            "p99_calls": timing.p99_calls,
            "p99_note": timing.p99_note,
            "throughput": timing.throughput,
            "rounds_ms": list(timing.rounds_ms),
            "float_rounds_ms": list(reference.rounds_ms),
            "build_seconds": round(build_seconds, 3),
            "state": state,
            "plan_sha256": getattr(engine, "plan_sha256", None),
            **diagnosed,
        }

    def _timed(self, engine: Engine, fastest_ms: float) -> tuple[dict[str, Timing], dict[str, Any]]:
        """Time an engine against the float engine, again while the machine slows down; returns the last timings and the
        state around them.
        """
        engines = {_FLOAT: self.baseline, _CANDIDATE: engine}
        protocol, seed, batch = (
            Protocol(**self.experiment["protocol"]),
            self.experiment["seed"],
            self.experiment["batch"],
        )
        readings: list[dict[str, Any]] = []
        while True:
            timings = measure_engines(
                engines,
                _FLOAT,
                protocol,
                seed=seed,
                batch=batch,
                around_rounds=lambda: readings.append(read_state()),
                fastest_ms=fastest_ms,
            )
            before, after = readings[-2:]
            reasons, count = throttle_reasons(before, after), len(readings) // 2
            if not reasons or count == _MOST_TIMINGS:
                return timings, {"before": before, "after": after, "throttled": reasons, "timings": count}


def _fastest_float_ms(earlier: Sequence[Mapping[str, Any]], batch: int, clock: str) -> float:
    """Return what the float engine took at its fastest in the last results, infinity where it is in none."""
    asked = (batch, clock)
    alike = [each for each in earlier if each.get("failed") is None and (each.get("batch"), each.get("clock")) == asked]
    # from its own rounds: by its slowdown a result would hand on the fastest time of all before it
    return min((fastest_of(each["float_rounds_ms"]) for each in alike[-REMEMBERED:]), default=math.inf)


def _diagnosed(engine: Engine) -> dict[str, Any]:
    """Return what explains the figures. A part of it that fails is None, with a note: it costs no figure."""
    notes: list[str] = []

    def part(what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine has been timed
            notes.append(f"there is no {what}: {failure_of(error).reason}")
            return None

    enqueue_ms, hot_and_cold = None, None
    if isinstance(engine, GpuTimed):
        enqueue_ms = part("time to enqueue", engine.enqueue_ms)
        hot_and_cold = part("time with a cold L2 cache", engine.hot_and_cold_ms)
    layers, note = part("description of the layers", engine.layers) or (None, None)
    hot_ms, cold_ms = hot_and_cold or (None, None)
    all_notes = [*notes, note] if note is not None else notes
    return {"enqueue_ms": enqueue_ms, "hot_ms": hot_ms, "cold_ms": cold_ms, "layers": layers, "notes": all_notes}


def _attempted(action: Callable[[], Any]) -> Any:
    """Return what an action gives, or its Failure. A transient one is tried once more, with its memory given back."""
    failure = None
    for _ in range(_ATTEMPTS):
        try:
            return action()
        except DeviceError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOMEM):
                raise  # a full disk is no fault of a candidate
            failure = failure_of(error)
        if failure.cause != TRANSIENT:
            break
        gc.collect()
    return failure


def _given_up(deaths: Deaths) -> Failure:
    how = "by a crash of the runtime" if deaths.crashed else "killed from outside, as when memory runs out"
    return Failure(f"the runner died {deaths.times} times over it, {how}", REFUSED if deaths.crashed else TRANSIENT, ())


def _named(failure: Failure) -> str:
    """Return the reason; a bug of ours is called one."""
    return f"a bug of smpq, not of the model: {failure.reason}" if failure.cause == INTERNAL else failure.reason


def _open(
    experiment: Mapping[str, Any], directory: Path, inputs: Mapping[str, np.ndarray], entry: Mapping[str, Any]
) -> Engine:
    """Make an engine of a model; DeviceError when the file is not that model."""
    model = directory / entry["model"]
    check_model(model, entry["sha256"])
    return OPENERS[experiment["runtime"]](model, entry["settings"], inputs, directory / CACHE_DIRECTORY)
