"""Timing on a clock that the engines themselves advance, so that every figure is known."""

import json

import numpy as np
import pytest

from deploy.latency.measure import Protocol, bootstrap_median, machine, measure_interleaved


class Clock:
    """Nanoseconds of CPU time; calls advance it by what they cost, with noise and a drift that slows everything
    down.
    """

    def __init__(self, noise=0.02, drift=0.0):
        self.now = 0.0
        self.called = []
        self.noise, self.drift = noise, drift
        self.random = np.random.default_rng(7)

    def __call__(self):
        return int(self.now)

    def engine(self, name, milliseconds):
        def call():
            self.called.append(name)
            slower = 1.0 + self.drift * len(self.called)
            self.now += 1e6 * milliseconds * slower * (1.0 + self.noise * abs(self.random.standard_normal()))

        return call


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("deploy.latency.measure.time.thread_time_ns", made)
    return made


def test_a_slower_call_is_measured_slower(clock):
    calls = {"float": clock.engine("float", 2.0), "slow": clock.engine("slow", 5.0), "fast": clock.engine("fast", 1.0)}
    result = measure_interleaved(calls, "float")
    assert result.timings["slow"].ratio == pytest.approx(2.5, rel=0.03)
    assert result.timings["fast"].ratio == pytest.approx(0.5, rel=0.03)
    assert result.timings["float"].latency_ms == pytest.approx(2.0, rel=0.05)
    for name, ratio in (("slow", 2.5), ("fast", 0.5)):
        low, high = result.timings[name].ratio_interval
        assert low <= result.timings[name].ratio <= high
        assert (low - ratio) * (high - ratio) < 0.01 * ratio
        assert high - low < 0.05 * ratio


def test_an_engine_against_itself(clock):
    same = clock.engine("same", 1.0)
    result = measure_interleaved({"float": same, "again": same}, "float")
    low, high = result.timings["again"].ratio_interval
    assert low <= 1.0 <= high
    assert result.timings["float"].ratio == 1.0
    assert result.timings["float"].ratio_interval == (1.0, 1.0)


def test_a_machine_that_slows_down_changes_no_ratio(monkeypatch):
    clock = Clock(noise=0.0, drift=1e-3)
    monkeypatch.setattr("deploy.latency.measure.time.thread_time_ns", clock)
    calls = {"float": clock.engine("float", 1.0), "engine": clock.engine("engine", 2.0)}
    result = measure_interleaved(calls, "float", Protocol(rounds=40, round_ms=3.0))
    first, *_, last = result.timings["engine"].rounds_ms
    assert last > 1.1 * first
    assert result.timings["engine"].ratio == pytest.approx(2.0, rel=0.03)


def test_every_round_runs_every_engine_in_changing_order(clock):
    calls = {"float": clock.engine("float", 1.0), "engine": clock.engine("engine", 1.0)}
    result = measure_interleaved(calls, "float", Protocol(rounds=20, round_ms=1.0, calls=3))
    assert all(len(timing.rounds_ms) == 20 for timing in result.timings.values())
    turns = [name for index, name in enumerate(clock.called) if index == 0 or clock.called[index - 1] != name]
    assert len(turns) > 20, "one engine after the other would be two turns"
    pairs = {tuple(turns[index : index + 2]) for index in range(len(turns) - 1)}
    assert pairs == {("float", "engine"), ("engine", "float")}


def test_a_quick_engine_runs_longer(clock):
    calls = {"float": clock.engine("float", 10.0), "quick": clock.engine("quick", 0.1)}
    measure_interleaved(calls, "float", Protocol(rounds=5, round_ms=10.0, calls=3))
    assert clock.called.count("quick") > 10 * clock.called.count("float")
    assert clock.called.count("float") >= 5 * 2


def test_the_record_says_how_it_was_measured(clock):
    result = measure_interleaved({"float": clock.engine("float", 1.0)}, "float", Protocol(rounds=5), seed=3)
    record = json.loads(json.dumps(result.to_json()))
    assert record["baseline"] == "float"
    assert record["clock"] == "thread CPU time"
    assert record["protocol"] == {"rounds": 5, "round_ms": 12.0, "calls": 3, "singles": 0}
    assert record["machine"] == machine()
    assert record["seed"] == 3
    assert len(record["timings"]["float"]["rounds_ms"]) == 5


def test_the_interval_of_a_median_covers_it():
    generator = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(200):
        low, high = bootstrap_median(generator.standard_normal(31), generator)
        covered += low <= 0.0 <= high
        widths.append(high - low)
    assert 0.88 <= covered / 200 <= 0.99
    low, high = bootstrap_median(generator.standard_normal(1000), generator)
    assert high - low < np.mean(widths) / 3
