"""What is said of engines whose times are known; `test_rounds` has the rules of the rounds."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.runner.protocol import NotComparable, Protocol, measure_engines


class FakeEngine:
    """Takes `ms` milliseconds a call, except every `slow_every`-th part, which takes ten times as long."""

    def __init__(self, ms, clock="thread CPU time", slow_every=None):
        self.ms, self.clock, self.slow_every = ms, clock, slow_every
        self.parts = 0

    def time(self, repeats):
        self.parts += 1
        self.repeats = [*getattr(self, "repeats", []), repeats]
        return self.ms * (10 if self.slow_every and self.parts % self.slow_every == 0 else 1)


def test_figures_of_engines_with_known_times():
    engines = {"float": FakeEngine(2.0), "engine": FakeEngine(0.5)}
    result = measure_engines(engines, "float", Protocol(rounds=7), batch=8)
    timing = result["engine"]
    assert timing.ratio == 0.25
    assert timing.ratio_interval == pytest.approx((0.25 - 0.00245, 0.25 + 0.00245)), "other sessions differ"
    assert timing.latency_ms == 0.5
    assert (timing.p99_ms, timing.p99_calls, timing.p99_note) == (None, 0, "no calls were timed one by one")
    assert timing.throughput == pytest.approx(16_000)
    assert result["float"].throughput == pytest.approx(4_000)
    assert timing.rounds_ms == (0.5,) * 7


class Jittering(FakeEngine):
    """Single calls take `ms` and up to a tenth more; one in twenty takes ten times as long, which a mean of many calls
    hides.
    """

    def __init__(self, ms, step=0.0):
        super().__init__(ms)
        self.random, self.step = np.random.default_rng(0), step

    def time(self, repeats):
        super().time(repeats)
        calls = self.ms * (1 + 0.1 * self.random.random(repeats)) * np.where(self.random.random(repeats) < 0.05, 10, 1)
        mean = float(calls.mean())
        return round(mean / self.step) * self.step if self.step else mean


def tail(engine, singles=1000):
    protocol = Protocol(rounds=3, singles=singles)
    return measure_engines({"float": FakeEngine(1.0), "engine": engine}, "float", protocol)["engine"]


def test_p99_is_of_single_calls():
    engine = Jittering(0.1)
    timing = tail(engine)
    assert (timing.p99_calls, timing.p99_note) == (1000, None)
    assert engine.repeats[-1000:] == [1] * 1000, "one by one, at the end"
    assert 1.0 <= timing.p99_ms <= 1.1, "the slow calls are seen; means of many calls are below 0.5"
    assert timing.latency_ms < 0.2


@pytest.mark.parametrize(("ms", "calls"), [(0.9, 400), (4.0, 100)])
def test_fewer_single_calls_where_they_take_long(ms, calls):
    timing = tail(Jittering(ms))
    assert 0.4 * calls <= timing.p99_calls <= 1.5 * calls or (timing.p99_ms is None and timing.p99_calls == 0)
    assert (timing.p99_ms is None) == (timing.p99_calls < 100)


def test_no_p99_where_too_few_calls_fit_or_the_clock_is_too_coarse():
    slow, coarse, stopped = tail(FakeEngine(6.0)), tail(Jittering(0.1, step=0.25)), tail(FakeEngine(0.1))
    assert slow.p99_note == "only 83 calls fit into 0.5 s, and a 99th percentile needs 100"
    assert coarse.p99_note == "the clock goes in steps of 1 ms, too coarse for single calls"
    assert stopped.p99_note == "the clock goes in steps of 0.1 ms, too coarse for single calls"
    assert {timing.p99_ms for timing in (slow, coarse, stopped)} == {None}


def test_interruptions_are_not_in_the_latency():
    engines = {"float": FakeEngine(1.0), "engine": FakeEngine(1.0, slow_every=7)}
    timing = measure_engines(engines, "float", Protocol(rounds=30, round_ms=12.0, calls=3))["engine"]
    assert timing.latency_ms == 1.0
    assert timing.ratio == 1.0


def test_clocks_are_not_mixed():
    engines = {"float": FakeEngine(2.0, "CUDA events"), "engine": FakeEngine(1.0, "wall clock")}
    with pytest.raises(NotComparable, match="CUDA events, wall clock"):
        measure_engines(engines, "float")


def test_the_same_seed_gives_the_same_intervals():
    def noisy(seed):
        random = np.random.default_rng(0)
        engines = {"float": FakeEngine(2.0), "engine": FakeEngine(1.0)}
        engines["engine"].time = lambda _repeats: 1.0 + 0.1 * random.random()
        return measure_engines(engines, "float", seed=seed)["engine"].ratio_interval

    assert noisy(3) == noisy(3)


class OnGpu(FakeEngine):
    """An engine on a GPU whose calls take `ms`, and three times as long for the first milliseconds, when its clocks are
    those of idleness.
    """

    warm_up_ms = 200.0
    captured = True
    gpu = None

    def __init__(self, ms, slow_ms):
        super().__init__(ms, "CUDA events")
        self.slow_ms, self.spent = slow_ms, 0.0

    def use_graph(self, on):
        self.on = on

    def enqueue_ms(self):
        return None

    def hot_and_cold_ms(self):
        return None

    def time(self, repeats):
        super().time(repeats)
        ms = self.ms * (3 if self.spent < self.slow_ms else 1)
        self.spent += repeats * ms
        return ms


@pytest.mark.parametrize("slow_ms", [100.0, 195.0])
def test_a_gpu_is_warm_and_its_clocks_settled_before_calls_are_counted(slow_ms):
    engine = OnGpu(0.1, slow_ms)
    states = []
    measure_engines(
        {"float": engine},
        "float",
        Protocol(rounds=3, round_ms=12.0),
        around_rounds=lambda: states.append((engine.spent, engine.parts)),
    )
    (spent, before), (_, after) = states
    assert 200.0 <= spent < 300.0
    rounds = engine.repeats[before:after]
    assert rounds == [1, *[24] * 5] * 3, "12 ms of 0.1 ms are 120 calls, in five parts, behind one that is not counted"


def test_an_engine_on_the_cpu_is_not_kept_waiting():
    engine = FakeEngine(0.1)
    measure_engines({"float": engine}, "float", Protocol(rounds=1))
    assert engine.repeats[:5] == [3, 1, 1, 1, 1]


def test_one_engine_without_a_graph_takes_it_from_the_other():
    engines = {"float": OnGpu(0.1, 0.0), "engine": OnGpu(0.2, 0.0)}
    measure_engines(engines, "float", Protocol(rounds=1))
    assert [engine.on for engine in engines.values()] == [True, True]
    engines["engine"].captured = False
    measure_engines(engines, "float", Protocol(rounds=1))
    assert [engine.on for engine in engines.values()] == [False, False]
