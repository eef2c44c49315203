"""Timing on a clock that the engines themselves advance, so that every figure is known."""

import numpy as np
import pytest

from deploy.runner.intervals import bootstrap_median, interval_of_ratio
from deploy.runner.protocol import Protocol, measure_engines


class Clock:
    """Milliseconds; calls advance it by what they cost, with noise and a drift that slows everything down."""

    def __init__(self, noise=0.02, drift=0.0):
        self.now = 0.0
        self.called = []
        self.noise, self.drift = noise, drift
        self.random = np.random.default_rng(7)

    def engine(self, name, milliseconds):
        return Engine(self, name, milliseconds)


class Engine:
    clock = "a clock that is known"

    def __init__(self, of, name, milliseconds):
        self.of, self.name, self.milliseconds = of, name, milliseconds

    def time(self, repeats):
        start, of = self.of.now, self.of
        for _ in range(repeats):
            of.called.append(self.name)
            slower = 1.0 + of.drift * len(of.called)
            of.now += self.milliseconds * slower * (1.0 + of.noise * abs(of.random.standard_normal()))
        return (of.now - start) / repeats


@pytest.fixture
def clock():
    return Clock()


def test_a_slower_call_is_measured_slower(clock):
    calls = {"float": clock.engine("float", 2.0), "slow": clock.engine("slow", 5.0), "fast": clock.engine("fast", 1.0)}
    result = measure_engines(calls, "float")
    assert result["slow"].ratio == pytest.approx(2.5, rel=0.03)
    assert result["fast"].ratio == pytest.approx(0.5, rel=0.03)
    assert result["float"].latency_ms == pytest.approx(2.0, rel=0.05)
    for name, ratio in (("slow", 2.5), ("fast", 0.5)):
        low, high = result[name].ratio_interval
        assert low <= result[name].ratio <= high
        assert (low - ratio) * (high - ratio) < 0.01 * ratio
        assert high - low < 0.05 * ratio


def test_an_engine_against_itself(clock):
    same = clock.engine("same", 1.0)
    result = measure_engines({"float": same, "again": same}, "float")
    low, high = result["again"].ratio_interval
    assert low <= 1.0 <= high
    assert result["float"].ratio == 1.0
    assert result["float"].ratio_interval == (1.0, 1.0)


def test_a_machine_that_slows_down_changes_no_ratio():
    clock = Clock(noise=0.0, drift=1e-3)
    calls = {"float": clock.engine("float", 1.0), "engine": clock.engine("engine", 2.0)}
    result = measure_engines(calls, "float", Protocol(rounds=40, round_ms=3.0))
    first, *_, last = result["engine"].rounds_ms
    assert last > 1.1 * first
    assert result["engine"].ratio == pytest.approx(2.0, rel=0.03)


def test_every_round_runs_every_engine_in_changing_order(clock):
    calls = {"float": clock.engine("float", 1.0), "engine": clock.engine("engine", 1.0)}
    result = measure_engines(calls, "float", Protocol(rounds=20, round_ms=1.0, calls=3))
    assert all(len(timing.rounds_ms) == 20 for timing in result.values())
    turns = [name for index, name in enumerate(clock.called) if index == 0 or clock.called[index - 1] != name]
    assert len(turns) > 20, "one engine after the other would be two turns"
    pairs = {tuple(turns[index : index + 2]) for index in range(len(turns) - 1)}
    assert pairs == {("float", "engine"), ("engine", "float")}


def test_a_quick_engine_runs_longer(clock):
    calls = {"float": clock.engine("float", 10.0), "quick": clock.engine("quick", 0.1)}
    measure_engines(calls, "float", Protocol(rounds=5, round_ms=10.0, calls=3))
    assert clock.called.count("quick") > 10 * clock.called.count("float")
    assert clock.called.count("float") >= 5 * 2


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


def test_the_interval_of_a_ratio_holds_for_other_sessions():
    generator, true = np.random.default_rng(0), 0.6
    covered = {"rounds": 0, "sessions": 0}
    for _ in range(200):
        session = true * (1 + 0.005 * generator.standard_normal())
        ratios = session * (1 + 0.004 * generator.standard_normal(41))
        for name, (low, high) in {
            "rounds": bootstrap_median(ratios, generator),
            "sessions": interval_of_ratio(ratios, 1.0, generator),
        }.items():
            covered[name] += low <= true <= high
    assert covered["sessions"] >= 180
    assert covered["rounds"] < 120, "or nothing would be gained"
