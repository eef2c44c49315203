"""What a measurement says of engines whose times are known. The rules of the rounds are tested through `deploy.latency.measure`."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.latency.measure import NotComparable, Protocol, ratio
from deploy.on_device.protocol import measure_engines


class FakeEngine:
    """Takes `ms` milliseconds a call, except every `slow_every`-th part, which takes ten times as long."""

    def __init__(self, ms, clock="thread CPU time", slow_every=None):
        self.ms, self.clock, self.slow_every = ms, clock, slow_every
        self.parts = 0

    def time(self, repeats):
        self.parts += 1
        return self.ms * (10 if self.slow_every and self.parts % self.slow_every == 0 else 1)


def test_figures_of_engines_with_known_times():
    engines = {"float": FakeEngine(2.0), "engine": FakeEngine(0.5)}
    result = measure_engines(engines, "float", Protocol(rounds=7), batch=8)
    timing = result.timings["engine"]
    assert timing.ratio == 0.25
    assert timing.ratio_interval == (0.25, 0.25)
    assert timing.latency_ms == timing.p99_ms == 0.5
    assert timing.throughput == pytest.approx(16_000)
    assert result.timings["float"].throughput == pytest.approx(4_000)
    assert timing.rounds_ms == (0.5,) * 7


def test_interruptions_are_in_p99_and_not_in_the_latency():
    engines = {"float": FakeEngine(1.0), "engine": FakeEngine(1.0, slow_every=7)}
    timing = measure_engines(engines, "float", Protocol(rounds=30, round_ms=12.0, calls=3)).timings["engine"]
    assert timing.latency_ms == 1.0
    assert timing.ratio == 1.0
    assert timing.p99_ms == pytest.approx(10.0)


def test_only_what_was_interleaved_is_compared():
    first = measure_engines({"float": FakeEngine(2.0), "engine": FakeEngine(1.0)}, "float")
    second = measure_engines({"float": FakeEngine(2.0), "engine": FakeEngine(1.0)}, "float")
    assert ratio(first.timings["engine"], first.timings["float"]) == 0.5
    with pytest.raises(NotComparable, match="measure them together"):
        ratio(first.timings["engine"], second.timings["float"])


def test_clocks_are_not_mixed():
    engines = {"float": FakeEngine(2.0, "CUDA events"), "engine": FakeEngine(1.0, "wall clock")}
    with pytest.raises(NotComparable, match="CUDA events, wall clock"):
        measure_engines(engines, "float")


def test_the_same_seed_gives_the_same_intervals():
    def noisy(seed):
        random = np.random.default_rng(0)
        engines = {"float": FakeEngine(2.0), "engine": FakeEngine(1.0)}
        engines["engine"].time = lambda _repeats: 1.0 + 0.1 * random.random()
        return measure_engines(engines, "float", seed=seed).timings["engine"].ratio_interval

    assert noisy(3) == noisy(3)
