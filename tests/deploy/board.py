"""A device that is none: it tells what engines of the tiny task take, without running them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import onnx

from deploy.devices.base import Experiment, Result
from deploy.runner.intervals import between_sessions
from deploy.runner.protocol import Protocol

LAYERS = ("first", "second", "head")
FASTER = {"first": -0.1, "second": -0.3, "head": 0.05}
SLOWER = dict.fromkeys(LAYERS, 0.1)
NO_FIGURES = dict.fromkeys(
    (
        "clock",
        "slowdown",
        "ratio",
        "ratio_interval",
        "engine_ms",
        "float_ms",
        "p99_ms",
        "p99_calls",
        "p99_note",
        "throughput",
        "enqueue_ms",
        "hot_ms",
        "cold_ms",
        "build_seconds",
        "layers",
        "state",
    )
)
_READING = {
    "cpu_mhz": None,
    "gpu_mhz": 1300.0,
    "gpu_max_mhz": 1300.0,
    "temperatures_c": {"gpu": 60.0},
    "limits": [],
    "counters": {},
}
STATE = {"before": _READING, "after": _READING, "throttled": [], "timings": 1}
Refuses = Callable[[set[str]], "tuple[str, list[str]] | None"]
"""Takes the layers that work on integers; returns a reason and the nodes that it blames, or None."""


def kernel(layer: str) -> dict:
    """A layer of a plan that multiplies integers, as the engine inspector tells of it."""
    tensors = [{"name": name, "dtype": "Int8", "shape": [4, 4, 3, 3]} for name in ("x", "w")]
    return {
        "kind": "correlation",
        "name": f"conv {layer}",
        "inputs": tensors[:1],
        "constants": tensors[1:],
        "outputs": [],
        "onnx_nodes": [layer],
        "ms": 0.1,
    }


def figures(integers: Iterable[str], costs: dict[str, float], refuses: Refuses) -> dict:
    """What a device says of an engine: every integer layer changes the time of the float engine, 2 ms, by its share."""
    empty = {**NO_FIGURES, "rounds_ms": [], "float_rounds_ms": [], "notes": []}
    refused = refuses(set(integers))
    if refused is not None:
        return {**empty, "failed": refused[0], "cause": "refused", "nodes": refused[1]}
    ratio = 1 + sum(costs[layer] for layer in integers)
    times = {
        "engine_ms": 2 * ratio,
        "float_ms": 2.0,
        "p99_ms": 2 * ratio,
        "p99_calls": 200,
        "throughput": 500 / ratio,
        "build_seconds": 0.1,
    }
    interval = list(between_sessions(ratio, (ratio - 0.002, ratio + 0.002)))
    rounds = {"rounds_ms": [2 * (ratio + by) for by in (-0.002, 0.0, 0.002)] * 5, "float_rounds_ms": [2.0] * 15}
    empty = {
        **empty,
        "state": STATE,
        "layers": [kernel(layer) for layer in integers],
        "failed": None,
        "cause": None,
        "nodes": [],
    }
    return {
        **empty,
        **times,
        **rounds,
        "clock": "CUDA events",
        "slowdown": 1.0,
        "ratio": ratio,
        "ratio_interval": interval,
    }


def nothing(_integers: set[str]) -> None:
    """Refuse nothing."""


class Board:
    """A device that tells what an engine takes without running it, and notes what it was asked."""

    def __init__(self, costs: dict[str, float], refuses: Refuses = nothing, gives_up_after: int = 1000) -> None:
        self.asked: list[str] = []
        self.experiments: list[Experiment] = []
        self._kept: dict[tuple[str, Protocol, int], Result] = {}
        self._costs, self._refuses, self._left = costs, refuses, gives_up_after

    def describe(self) -> str:
        return "a board"

    def measure(self, experiment: Experiment, announce: object = None) -> list[Result]:
        entries = []
        self.experiments.append(experiment)
        for candidate in experiment.candidates:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.asked.append(candidate.name)
            about = {"key": candidate.name, "name": candidate.name, "batch": 1}
            names = {
                node.name.partition("/")[0]
                for node in onnx.load(candidate.model).graph.node
                if node.op_type == "DequantizeLinear"
            }
            entries.append(
                msgspec.convert({**about, **figures(names & set(LAYERS), self._costs, self._refuses)}, Result)
            )
        return self.keep(experiment, entries)

    def keep(self, experiment: Experiment, results: list[Result]) -> list[Result]:
        """Remember what it says of the candidates of an experiment; returns it."""
        for result in results:
            self._kept[result.name, experiment.protocol, experiment.seed] = result
        return results

    def known(self, experiment: Experiment) -> list[Result]:
        keys = [(each.name, experiment.protocol, experiment.seed) for each in experiment.candidates]
        return [self._kept[key] for key in keys if key in self._kept]

    def fetch_engine(self, _result: Result, _directory: object) -> None:
        """Keep no plans."""

    def close(self) -> None:
        pass
