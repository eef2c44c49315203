"""Rounds beside a neighbour: another set of them, the quietest kept, a wider interval where none were quiet."""

from __future__ import annotations

import math

import pytest

from deploy.runner import bench
from deploy.runner.protocol import Protocol, measure_engines
from deploy.runner.quiet import quiet_rounds, widened

QUIET, BUSY = {"float": 1.0, "engine": 0.6}, {"float": 1.3, "engine": 1.0}


class Clock:
    """Time that passes with rounds alone, `round_s` each, and with pauses."""

    def __init__(self, round_s):
        self.now, self.round_s, self.made, self.pauses = 0.0, round_s, 0, []

    def round(self, rounds):
        self.now, self.made = self.now + self.round_s, self.made + 1
        return next(rounds)

    def pause(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)


def told(rounds, count, fastest_ms=math.inf, *, round_s=0.01, seconds=math.inf):
    """Choose among `rounds`; returns what was chosen, the slowdown, how many rounds were made, and the pauses."""
    made, clock = iter(rounds), Clock(round_s)
    chosen, slowdown = quiet_rounds(
        lambda: clock.round(made), count, 4, "float", fastest_ms, clock.pause, seconds, lambda: clock.now
    )
    return chosen, slowdown, clock.made, clock.pauses


def test_quiet_rounds_are_all_there_are():
    assert told([QUIET] * 9, 3) == ([QUIET] * 3, 1.0, 3, [])


def test_a_neighbour_that_comes_and_goes():
    chosen, slowdown, made, pauses = told([QUIET, BUSY, BUSY, BUSY, QUIET, QUIET], 3)
    assert (chosen, slowdown, made, len(pauses)) == ([QUIET] * 3, 1.0, 6, 1)


def test_a_neighbour_from_the_first_to_the_last_round_is_told_by_earlier_measurements():
    rounds = [BUSY] * 60
    assert told(rounds, 3)[1:3] == (1.0, 3), "nothing tells it"
    chosen, slowdown, made, pauses = told(rounds, 3, fastest_ms=1.0)
    assert (chosen, slowdown, made, len(pauses)) == ([BUSY] * 3, 1.3, 6, 1), "it stays: nothing is gained by waiting"


def test_pauses_grow_as_long_as_they_help():
    slower = [{"float": ms, "engine": ms} for ms in (2.2, 1.8, 1.5, 1.3)]
    chosen, slowdown, made, pauses = told([each for each in slower for _ in range(3)], 3, fastest_ms=1.0)
    assert (chosen, slowdown, made) == ([slower[-1]] * 3, 1.3, 12)
    assert [pause / pauses[0] for pause in pauses] == pytest.approx([1, 2, 4])
    slower[2] = {"float": 1.7, "engine": 1.7}
    chosen, slowdown, made, pauses = told([each for each in slower for _ in range(3)], 3, fastest_ms=1.0)
    assert (chosen, slowdown, made) == ([slower[2]] * 3, 1.7, 9)


@pytest.mark.parametrize(
    ("round_s", "rounds", "pauses"),
    [
        (0.1, 4 * 41, 3),  # 4.1 s a set: 4 sets and pauses of 4.1, 8.2 and 16.4 s end within 60 s
        (0.3, 2 * 41, 1),  # 12.3 s a set: a pause of 24.6 s and a third set would not
        (0.5, 2 * 30, 1),  # the first set ends behind 15 s
        (0.9, 2 * 17, 1),
        (2.0, 15, 0),  # not fewer, and no second set
    ],
)
def test_slow_engines_are_timed_for_a_limited_time(round_s, rounds, pauses):
    """The neighbour leaves a little more room each time, so that another set is worth while."""
    slower = ({"float": 1.0 + 20 * 0.97**number, "engine": 1.0} for number in range(200))
    chosen, slowdown, made, waits = told(slower, 41, fastest_ms=1.0, round_s=round_s, seconds=60.0)
    assert (made, len(waits)) == (rounds, pauses)
    assert len(chosen) == rounds / (pauses + 1)
    assert slowdown > 1
    assert made * round_s + sum(waits) <= 60.0


def test_no_engine_is_favoured_by_the_choice():
    lucky = {"float": 0.97, "engine": 0.66}
    chosen, *_ = told([BUSY, lucky, BUSY, QUIET, QUIET, QUIET], 3)
    assert chosen == [QUIET] * 3, "not the round in which the float engine alone was fastest"


def test_the_interval_is_as_wide_as_the_float_engine_was_slow():
    assert widened((0.5, 0.6), 1.06) == (0.5, 0.6)
    assert widened((0.5, 0.6), 1.25) == pytest.approx((0.4, 0.75))


class Neighboured:
    """An engine that takes `ms`, and `factor` as long while the neighbour is there."""

    clock = "thread CPU time"

    def __init__(self, ms, factor, busy):
        self.ms, self.factor, self.busy = ms, factor, busy

    def time(self, _repeats):
        return self.ms * (self.factor if self.busy() else 1)


def measured(stays):
    """Time two engines beside a neighbour that `stays`, or is gone after a pause."""
    pauses = []
    engines = {
        name: Neighboured(ms, factor, lambda: stays or not pauses)
        for name, ms, factor in (("float", 1.0, 1.3), ("engine", 0.6, 1.6))
    }
    return measure_engines(engines, "float", Protocol(rounds=5), fastest_ms=1.0, pause=pauses.append), pauses


def test_engines_are_timed_when_the_neighbour_is_gone():
    timings, pauses = measured(stays=False)
    assert timings["engine"].ratio == pytest.approx(0.6)
    assert (timings["engine"].slowdown, len(timings["engine"].rounds_ms), len(pauses)) == (1.0, 5, 1)


def test_a_neighbour_that_stays_makes_the_interval_wider():
    timings, _ = measured(stays=True)
    assert timings["engine"].ratio == pytest.approx(0.96 / 1.3)
    low, high = timings["engine"].ratio_interval
    assert low < 0.6 < high
    assert timings["float"].ratio_interval == (1.0, 1.0)


def result(float_ms, **other):
    return {"failed": None, "batch": 1, "clock": "a clock", "float_rounds_ms": [float_ms] * 5, "slowdown": 2.0, **other}


@pytest.mark.parametrize(
    ("earlier", "fastest_ms"),
    [
        ([], math.inf),
        ([result(1.3), result(1.0), result(1.2)], 1.0),
        ([result(1.0), *[result(1.3)] * 4], 1.3),  # a processor that has grown warm
        ([result(1.0, batch=8), result(1.1, clock="another"), result(1.2, failed="no kernel")], math.inf),
    ],
)
def test_the_last_results_say_how_fast_the_float_engine_is(earlier, fastest_ms):
    assert bench._fastest_float_ms(earlier, 1, "a clock") == fastest_ms
