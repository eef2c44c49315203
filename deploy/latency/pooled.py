"""Measurements of one engine taken together: more rounds, and a narrower interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from deploy.devices.base import Result
from deploy.runner.intervals import interval_of_ratio
from deploy.runner.state import QUIET


def pooled(results: Sequence[Result], seed: int) -> Result:
    """Return one result that holds the rounds of several of the same engine, and the ratio and times of all of them.

    Rounds beside other work say little, so where some results are of a quiet machine only these count, and without one
    the quietest alone. Results of another plan than the last one's are of another engine, and are left out. What is no
    figure of the rounds is that of the last of these, and of single calls that of the last that has them. The ratio is
    the median of the ratios within rounds, its interval as that of one measurement
    (`deploy.runner.intervals`). Ours.
    """
    last = results[-1]
    alike = [each for each in results if each.plan_sha256 == last.plan_sha256]
    quiet = [each for each in alike if _slowdown(each) <= 1 + QUIET] or [min(alike, key=_slowdown)]
    timed = next((each for each in reversed(alike) if each.p99_calls), quiet[-1])
    calls = {"p99_ms": timed.p99_ms, "p99_calls": timed.p99_calls, "p99_note": timed.p99_note}
    if len(quiet) == 1:
        return replace(quiet[0], **calls)
    engine = np.concatenate([each.rounds_ms for each in quiet])
    baseline = np.concatenate([each.float_rounds_ms for each in quiet])
    slowdown = max(map(_slowdown, quiet))
    engine_ms = float(np.median(engine))
    return replace(
        quiet[-1],
        **calls,
        ratio=float(np.median(engine / baseline)),
        ratio_interval=interval_of_ratio(engine / baseline, slowdown, np.random.default_rng(seed), len(quiet)),
        engine_ms=engine_ms,
        float_ms=float(np.median(baseline)),
        throughput=1000.0 * last.batch / engine_ms,
        slowdown=slowdown,
        rounds_ms=tuple(engine.tolist()),
        float_rounds_ms=tuple(baseline.tolist()),
    )


def _slowdown(result: Result) -> float:
    return result.slowdown or 1.0
