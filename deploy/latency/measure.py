"""Time callables of this process against each other, as engines are timed on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.runner.protocol import (
    Measurement,
    NotComparable,
    Protocol,
    Timing,
    bootstrap_median,
    measure_engines,
    ratio,
)
from deploy.runner.state import machine

__all__ = [
    "Call",
    "Measurement",
    "NotComparable",
    "Protocol",
    "Timing",
    "bootstrap_median",
    "machine",
    "measure_interleaved",
    "ratio",
]

Call = Callable[[], object]
"""Runs an engine once on fixed inputs, in the calling thread."""


@dataclass(frozen=True)
class _Called:
    """A callable on the CPU clock of the calling thread."""

    call: Call
    clock: str = "thread CPU time"

    def time(self, repeats: int) -> float:
        """Mean CPU milliseconds of one call."""
        start = time.thread_time_ns()
        for _ in range(repeats):
            self.call()
        return (time.thread_time_ns() - start) / repeats / 1e6


def measure_interleaved(
    calls: Mapping[str, Call], baseline: str, protocol: Protocol | None = None, seed: int = 0
) -> Measurement:
    """Time callables in turn, round by round, on the CPU clock of this thread.

    They must run on one thread, the calling one: the thread's CPU time then leaves out what other processes take, which
    makes wall-clock times useless on a busy machine.
    """
    return measure_engines({name: _Called(call) for name, call in calls.items()}, baseline, protocol, seed=seed)
