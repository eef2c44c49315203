from __future__ import annotations

import math

from calib.formats.format import FP32
from deploy.latency.ladder import Ladder, Rung, frontier, gaps
from smpq.problem.policy import Policy


def rung(cost: float, value: float) -> Rung:
    return Rung(Policy({"a": FP32}, frozenset({f"{cost} {value}"})), cost, value)


def test_the_frontier_is_what_nothing_beats_in_both():
    rungs = [rung(1.0, 0.0), rung(0.5, -3.0), rung(0.7, -4.0), rung(0.8, -1.0), rung(0.8, -2.0), rung(0.5, -5.0)]
    assert [(each.cost, each.value) for each in frontier(rungs)] == [(0.5, -3.0), (0.8, -1.0), (1.0, 0.0)]


def test_the_widest_gap_comes_first_and_close_neighbours_are_none():
    rungs = [rung(0.5, -4.0), rung(0.6, -1.0), rung(0.605, -0.9), rung(1.0, 0.0)]
    assert [(low.cost, high.cost) for low, high in gaps(rungs)] == [(0.605, 1.0), (0.5, 0.6)]
    assert gaps(rungs[:1]) == []


def test_distance_counts_the_root_of_the_loss():
    rungs = [rung(0.5, -100.0), rung(0.7, -25.0), rung(0.9, -9.0), rung(1.0, 0.0)]
    low, high = gaps(rungs)[0]
    assert (low.cost, high.cost) == (0.5, 0.7)
    assert math.sqrt(100) - math.sqrt(25) > math.sqrt(25) - math.sqrt(9)


def test_a_gap_without_a_new_policy_is_not_looked_at_again():
    rungs, ladder, asked = [rung(0.5, -4.0), rung(0.7, -1.0), rung(1.0, 0.0)], Ladder(), []

    def best_within(limit: float) -> Policy:
        asked.append(round(limit, 3))
        return rungs[0].policy

    assert ladder.next(rungs, best_within, lambda policy: False) is None
    assert sorted(asked) == [0.6, 0.85]
    assert ladder.next(rungs, best_within, lambda policy: True) is None
    assert len(asked) == 2
    new = rung(0.8, -0.5).policy
    assert ladder.next([*rungs, rung(0.9, -0.2)], lambda limit: new, lambda policy: policy is new) is new
