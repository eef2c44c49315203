"""Time whole engines against each other: interleaved rounds, one clock, an interval on every ratio."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1
_WARM_UP_CALLS = 3
_RESAMPLES = 2000
_CONFIDENCE = 0.95

Call = Callable[[], object]
"""Runs an engine once on fixed inputs, in the calling thread."""


@dataclass(frozen=True)
class Protocol:
    """How to measure: `rounds` rounds; in each, every engine runs at least `round_ms` milliseconds and at least `calls` times."""

    rounds: int = 15
    round_ms: float = 12.0
    calls: int = 3


@dataclass(frozen=True)
class Timing:
    """One engine: per round the mean CPU time of a call, and the ratio to the baseline of the same round.

    Times are milliseconds; intervals are 95 %, bootstrap over rounds. `ratio` is 1 for the baseline itself.
    """

    latency_ms: float
    latency_interval_ms: tuple[float, float]
    ratio: float
    ratio_interval: tuple[float, float]
    rounds_ms: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """Timings of engines that were measured interleaved, in one process; only these may be compared."""

    timings: Mapping[str, Timing]
    baseline: str
    clock: str
    protocol: Protocol
    machine: str
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a run's files."""
        return {"schema": SCHEMA, **asdict(self), "timings": {name: asdict(timing) for name, timing in self.timings.items()}}


def measure_interleaved(calls: Mapping[str, Call], baseline: str, protocol: Protocol | None = None, seed: int = 0) -> Measurement:
    """Time engines in turn, round by round, on the CPU clock of this thread.

    The engines must run on one thread, the calling one: the thread's CPU time then leaves out what other processes take, which
    makes wall-clock times useless on a busy machine. The order within a round is shuffled; the ratio of two engines is the median of
    their ratios within rounds.
    """
    protocol = protocol or Protocol()
    generator = np.random.default_rng(seed)
    names = list(calls)
    repeats: dict[str, int] = {}
    for name in names:
        for _ in range(_WARM_UP_CALLS):
            calls[name]()
        # the faster of two, so that one interrupted call does not leave an engine with too few repeats
        fastest = min(_time(calls[name], 1) for _ in range(_WARM_UP_CALLS))
        repeats[name] = max(protocol.calls, round(protocol.round_ms / max(fastest, 1e-3)))
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(protocol.rounds):
        for index in generator.permutation(len(names)):
            name = names[index]
            parts = max(2, min(5, repeats[name] // protocol.calls))
            rounds[name].append(min(_time(calls[name], max(1, repeats[name] // parts)) for _ in range(parts)))
    reference = np.array(rounds[baseline])
    timings = {}
    for name in names:
        values = np.array(rounds[name])
        ratios = values / reference
        low, high = bootstrap_median(values, generator)
        ratio_low, ratio_high = bootstrap_median(ratios, generator)
        timings[name] = Timing(
            float(np.median(values)), (low, high), float(np.median(ratios)), (ratio_low, ratio_high), tuple(map(float, values))
        )
    return Measurement(timings, baseline, "thread CPU time", protocol, machine(), seed)


def bootstrap_median(values: Sequence[float] | np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the median."""
    array = np.asarray(values)
    picks = generator.integers(0, len(array), size=(_RESAMPLES, len(array)))
    medians = np.median(array[picks], axis=1)
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)


def machine() -> str:
    """Name the processor and system that was measured on."""
    model = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: the platform's own name must do
    return f"{model}, {platform.system()} {platform.machine()}"


def _time(call: Call, repeats: int) -> float:
    """Mean CPU milliseconds of one call."""
    start = time.thread_time_ns()
    for _ in range(repeats):
        call()
    return (time.thread_time_ns() - start) / repeats / 1e6
