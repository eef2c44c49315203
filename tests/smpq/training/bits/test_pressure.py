"""What steers to a budget."""

from __future__ import annotations

from smpq.training.bits.pressure import Pressure


def test_it_grows_behind_the_course_and_falls_ahead_of_it():
    found = Pressure(1.0, 4.0, 2.0)
    found.steer(0.45, 2.1)  # halfway to nine tenths the course is the root of 4
    assert found.weight == 2
    found.steer(0.45, 1.9)
    assert found.weight == 1
    found.steer(0.95, 1.01)
    assert found.weight == 2, "the course has arrived"


def test_a_cost_that_gives_in_to_it_arrives_in_time():
    for first in (0.01, 1.0, 5.0):
        found, cost, steps = Pressure(first, 4.0, 1.3), 4.0, 0
        while cost > 1:
            cost *= 1 - min(0.1, 0.01 * found.weight)
            steps += 1
            found.steer(steps / 100, cost)
        assert 60 < steps <= 100, first
