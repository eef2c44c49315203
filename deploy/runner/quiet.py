"""Rounds that nothing else has slowed down: what a neighbour does to one engine it does not do alike to another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deploy.runner.state import QUIET

FEWEST = 15
"""Rounds of an engine however slow it is: fewer leave an interval little to stand on."""
_FASTEST = 0.1
"""The quantile of the baseline's rounds that counts as its fastest: a single round may be lucky."""
_STAYS = 0.75
"""Other work stays where so much of its slowdown is left behind a pause."""

Round = Mapping[str, float]
"""Milliseconds of a call of each engine, timed one behind the other."""


def quiet_rounds(
    one_round: Callable[[], Round],
    count: int,
    sets: int,
    baseline: str,
    fastest_ms: float,
    pause: Callable[[float], None],
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Round], float]:
    """Return the `count` quietest rounds of as many as it takes, in their order, and the slowdown that is left in them.

    A quarter of the `seconds` is for the first set: it ends there with the rounds that it has, but not before it has
    `FEWEST`, and other sets have as many. No set begins that would end behind the `seconds`.

    A processor shares its units and caches with whatever else is at work. Integer kernels suffer more from that than
    float ones: of ResNet-20 on two hardware threads of one core, the ratio is 0.64 alone and 0.75 beside a busy thread,
    and each says the same for seconds, so that rounds in a row agree with each other and not with the truth. The
    baseline tells: it is the same engine every time. Where its median is `QUIET` above its fastest, another set of
    rounds follows, `sets` at most. Before the second one is a pause as long as the first one was; each further pause is
    twice as long. Where the last pause has taken away less than a quarter of the slowdown, what is at work stays, and
    waiting would only cost time. `fastest_ms` is the fastest known of earlier measurements, infinity without any.

    The slowdown is the baseline's median time in these rounds by its fastest. Rounds are chosen by the times of all
    engines together, so that chance favours none of them. Ours.
    """
    start = clock()
    found: list[Round] = []
    while len(found) < count and (len(found) < FEWEST or clock() - start < seconds / 4):
        found.append(one_round())
    count, first_s, before = len(found), clock() - start, np.inf
    for made in range(1, sets + 1):
        quietest = _quietest(found, count)
        fastest = min(fastest_ms, fastest_of([each[baseline] for each in found]))
        slowdown = float(np.median([each[baseline] for each in quietest])) / fastest if fastest > 0 else 1.0
        if slowdown <= 1 + QUIET or made == sets or slowdown - 1 > _STAYS * (before - 1):
            break
        wait_s = 2 ** (made - 1) * first_s
        if clock() - start + wait_s + first_s > seconds:
            break
        before = slowdown
        pause(wait_s)
        found += [one_round() for _ in range(count)]
    return quietest, max(1.0, slowdown)


def widened(interval: tuple[float, float], slowdown: float) -> tuple[float, float]:
    """Return the interval of a ratio whose rounds were slowed down. The ratio may be wrong by as much as the baseline
    was: what slowed that may have slowed the other engine twice as much, or not at all.
    """
    low, high = interval
    return (low / slowdown, high * slowdown) if slowdown > 1 + QUIET else interval


def _quietest(rounds: Sequence[Round], count: int) -> list[Round]:
    if len(rounds) <= count:
        return list(rounds)
    times = np.array([list(each.values()) for each in rounds])
    slowness = (times / np.maximum(times.min(axis=0), 1e-300)).sum(axis=1)
    return [rounds[index] for index in sorted(np.argsort(slowness, kind="stable")[:count])]


def fastest_of(times_ms: Sequence[float]) -> float:
    """Return what counts as the fastest of the rounds of one engine."""
    return float(sorted(times_ms)[int(_FASTEST * (len(times_ms) - 1))])
