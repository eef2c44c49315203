"""Time whole engines against each other: interleaved rounds, one clock, an interval on every ratio."""

from __future__ import annotations

import math
import time
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deploy.runner.errors import DeviceError
from deploy.runner.intervals import interval_of_ratio
from deploy.runner.quiet import Round, quiet_rounds

_WARM_UP_CALLS = 3
_STEP_MS = 20.0
"""What is timed at once while a GPU warms up."""
_SETTLED = 0.02
"""Two timings that differ by this share agree."""
_MOST_STEPS = 40
_SINGLES_MS = 500.0
"""How long calls are timed one by one, at most."""
_FEWEST_SINGLES = 100
"""A 99th percentile of fewer calls is their maximum."""
_COARSEST = 0.05
"""The clock's step, as a share of the percentile, that still tells it."""


class Timed(typing.Protocol):
    """What a measurement needs of an engine: fixed inputs, ready to run."""

    @property
    def clock(self) -> str:
        """What `time` reads, as in "thread CPU time" or "CUDA events"."""

    def time(self, repeats: int) -> float:
        """Run `repeats` times; returns the mean milliseconds of a call."""


@typing.runtime_checkable
class GpuTimed(Timed, typing.Protocol):
    """What an engine on a GPU has to offer besides; without it an engine is timed as one on the CPU.

    1. `captured`: its work was captured as a CUDA graph. `use_graph` says whether the calls that follow are launches of
       that graph; `clock` tells which they are. An engine that was not captured has no graph to use, whatever it is
       told.
    2. `warm_up_ms`: how long the GPU works before anything is counted, so that its clocks are those of work.
    3. `gpu`: what the GPU is, as `deploy.devices.messages.Gpu` has it, or None.
    4. `enqueue_ms` and `hot_and_cold_ms` are made after the rounds; a runtime that cannot tell returns None.
    """

    captured: bool
    warm_up_ms: float

    @property
    def gpu(self) -> dict[str, Any] | None:
        """Name, UUID, compute capability, driver, multiprocessors, L2 cache and memory."""

    def use_graph(self, on: bool) -> None:
        """Choose between launches of the CUDA graph and single calls."""

    def enqueue_ms(self) -> float | None:
        """Milliseconds that the host takes to put one call on the GPU's stream."""

    def hot_and_cold_ms(self) -> tuple[float, float] | None:
        """Milliseconds of a single call with what the call before it left in the L2 cache, and with an L2 cache of
        other data.
        """


class Engine(Timed, typing.Protocol):
    """What every runtime makes of a model and its inputs."""

    def run(self) -> None:
        """Run once, and wait for the end."""

    def outputs(self) -> dict[str, np.ndarray]:
        """Run once; returns the outputs by name."""

    def layers(self) -> tuple[list[dict[str, Any]] | None, str | None]:
        """Describe what the runtime made of each layer, None where it does not tell; and why layers or their times are
        missing, if so.
        """

    def close(self) -> None:
        """Give back what the engine holds on the device."""


class NotComparable(ValueError):  # noqa: N818 - the name says what is wrong
    """Engines that read different clocks: their ratio says nothing."""


@dataclass(frozen=True)
class Protocol:
    """How to measure: `rounds` rounds or more, of which as many are kept; in each, every engine runs at least
    `round_ms` milliseconds and at least `calls` times.

    Where something else is at work, up to `sets` sets of as many rounds are made (`deploy.runner.quiet`). Of slow
    engines there are fewer rounds and sets: all of them end within `seconds`, or with `deploy.runner.quiet.FEWEST`
    rounds. After the rounds, `singles` calls at most are timed one by one, for the 99th percentile.
    """

    rounds: int = 15
    round_ms: float = 12.0
    calls: int = 3
    singles: int = 0
    sets: int = 4
    seconds: float = 60.0


@dataclass(frozen=True)
class Timing:
    """One engine, timed by turns with others: its rounds, and the ratio to the baseline of the same round.

    Times are milliseconds of one call. `ratio` is 1 for the baseline itself, and its interval is 95 %, bootstrap over
    rounds. `slowdown` is the time of the baseline in these rounds by its fastest known; where something else was at
    work, the interval of the ratio is wider for it (`deploy.runner.quiet`).
    `p99_ms` is over `p99_calls` calls that were timed one by one, or None, and `p99_note` says why. `throughput` is
    samples in a second. `clock` is what all engines were timed by.
    """

    latency_ms: float
    ratio: float
    ratio_interval: tuple[float, float]
    rounds_ms: tuple[float, ...]
    p99_ms: float | None
    p99_calls: int
    p99_note: str | None
    throughput: float
    clock: str
    slowdown: float


def measure_engines(
    engines: Mapping[str, Timed],
    baseline: str,
    protocol: Protocol | None = None,
    *,
    seed: int = 0,
    batch: int = 1,
    around_rounds: Callable[[], None] = lambda: None,
    fastest_ms: float = math.inf,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """Time engines by turns, round by round, each call on a batch of `batch` samples; return the timing of each.

    All engines must read the same clock.

    Where one of the engines was not captured as a CUDA graph, all of them run without graphs. `around_rounds` is called
    right before the first round and right after the last one. `fastest_ms` is the fastest that the baseline is known to
    be: while it is slower, something else is at work, and more rounds follow after a `pause`.

    After a warm-up the order within a round is shuffled, since an engine may profit from what ran before it. In a round
    each engine makes one call that is not timed, since others have filled the caches, and runs in two to five parts, of
    which the fastest counts: an interruption only ever adds time. The ratio of two engines is the median of their
    ratios within rounds, so that a machine that slows down changes no ratio; its interval holds for other sessions of
    the same engines too. At the end each engine's calls are timed
    one by one. Raises NotComparable when the clocks differ, DeviceError when a clock is too coarse to read a time.
    Ours.
    """
    protocol = protocol or Protocol()
    _run_alike(engines.values())
    clocks = sorted({engine.clock for engine in engines.values()})
    if len(clocks) > 1:
        raise NotComparable(f"engines with different clocks cannot be compared: {', '.join(clocks)}")
    generator = np.random.default_rng(seed)
    names = list(engines)
    warm = {name: _warmed(engine) for name, engine in engines.items() if isinstance(engine, GpuTimed)}
    repeats = {name: _repeats(engines[name], protocol, warm.get(name)) for name in names}

    def one_round() -> Round:
        order = generator.permutation(len(names))
        times = {names[index]: _one_round(engines[names[index]], repeats[names[index]], protocol) for index in order}
        return {name: times[name] for name in names}

    around_rounds()
    # an idle GPU lowers its clocks
    wait = (lambda _: None) if warm else pause
    rounds, slowdown = quiet_rounds(
        one_round, protocol.rounds, protocol.sets, baseline, fastest_ms, wait, protocol.seconds
    )
    around_rounds()
    if not all(ms > 0 for each in rounds for ms in each.values()):
        raise DeviceError(
            f"the clock of this machine ({clocks[0]}) is too coarse: it reads times that are not above zero"
        )
    by_name = {name: np.array([each[name] for each in rounds]) for name in names}
    timings = {
        name: _timing(times, by_name[baseline], slowdown, generator, clocks[0], batch)
        for name, times in by_name.items()
    }
    return {
        name: replace(timing, **_tail(engines[name], timing.latency_ms, protocol)) for name, timing in timings.items()
    }


def _run_alike(engines: Iterable[Timed]) -> None:
    """Use CUDA graphs where all engines have one, and nowhere else: a ratio of two ways to launch says nothing about
    the engines.
    """
    on_gpu = [engine for engine in engines if isinstance(engine, GpuTimed)]
    captured = all(engine.captured for engine in on_gpu)
    for engine in on_gpu:
        engine.use_graph(captured)


def _warmed(engine: GpuTimed) -> float:
    """Keep the GPU at work until it is warm and two timings in a row agree, which is given up after some; returns
    milliseconds a call.
    """
    calls, spent, before = 1, 0.0, 0.0
    for _ in range(_MOST_STEPS):
        ms = engine.time(calls)
        spent += calls * ms
        if spent >= engine.warm_up_ms and abs(ms - before) <= _SETTLED * before:
            break
        before = ms
        calls = min(2 * calls, max(1, round(_STEP_MS / max(ms, 1e-3))))
    return ms


def _repeats(engine: Timed, protocol: Protocol, warm_ms: float | None) -> int:
    """Return how many calls an engine makes in a round; warms it up unless `warm_ms` is what a call takes of an engine
    that is warm.
    """
    if warm_ms is not None:
        return max(protocol.calls, round(protocol.round_ms / max(warm_ms, 1e-3)))
    engine.time(_WARM_UP_CALLS)
    # the fastest of some, so that one interrupted call does not leave an engine with too few repeats
    fastest = min(engine.time(1) for _ in range(_WARM_UP_CALLS))
    return max(protocol.calls, round(protocol.round_ms / max(fastest, 1e-3)))


def _one_round(engine: Timed, repeats: int, protocol: Protocol) -> float:
    engine.time(1)
    parts = max(2, min(5, repeats // protocol.calls))
    return min(engine.time(max(1, repeats // parts)) for _ in range(parts))


def _tail(engine: Timed, latency_ms: float, protocol: Protocol) -> dict[str, Any]:
    """Time calls one by one; returns the 99th percentile, of how many calls it is, and why there is none."""
    count = min(protocol.singles, int(_SINGLES_MS / max(latency_ms, 1e-6)))
    if protocol.singles == 0:
        return {"p99_ms": None, "p99_calls": 0, "p99_note": "no calls were timed one by one"}
    if count < _FEWEST_SINGLES:
        reason = f"only {count} calls fit into {_SINGLES_MS / 1000:g} s, and a 99th percentile needs {_FEWEST_SINGLES}"
        return {"p99_ms": None, "p99_calls": 0, "p99_note": reason}
    engine.time(_WARM_UP_CALLS)
    times = np.sort([engine.time(1) for _ in range(count)])
    p99 = float(np.percentile(times, 99))
    steps = np.diff(np.unique(times))
    step = float(steps.min()) if len(steps) else p99  # times that are all the same are one step of the clock
    if step > _COARSEST * p99 or p99 == 0:
        return {
            "p99_ms": None,
            "p99_calls": count,
            "p99_note": f"the clock goes in steps of {step:.3g} ms, too coarse for single calls",
        }
    return {"p99_ms": p99, "p99_calls": count, "p99_note": None}


def _timing(
    rounds: np.ndarray,
    reference: np.ndarray,
    slowdown: float,
    generator: np.random.Generator,
    clock: str,
    batch: int,
) -> Timing:
    ratios = rounds / reference
    latency = float(np.median(rounds))
    return Timing(
        latency_ms=latency,
        ratio=float(np.median(ratios)),
        ratio_interval=(1.0, 1.0) if rounds is reference else interval_of_ratio(ratios, slowdown, generator),
        rounds_ms=tuple(map(float, rounds)),
        p99_ms=None,
        p99_calls=0,
        p99_note=None,
        throughput=1000.0 * batch / latency,
        clock=clock,
        slowdown=slowdown,
    )
