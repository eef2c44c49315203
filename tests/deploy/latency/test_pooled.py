"""Several measurements of one engine become one."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from deploy.devices.base import Result
from deploy.latency.pooled import pooled
from deploy.runner.intervals import interval_of_ratio
from tests.deploy.board import FASTER, figures, nothing


def result(seed: int = 0, slowdown: float = 1.0, ratio: float = 0.65, **changes) -> Result:
    """What a device says of 15 rounds."""
    generator = np.random.default_rng(seed)
    baseline = 2.0 * generator.uniform(0.99, 1.01, 15)
    engine = baseline * ratio * generator.uniform(0.96, 1.04, 15)
    told = msgspec.convert(
        {"key": "0" * 16, "name": "0" * 16, "batch": 1, **figures(["first", "second", "head"], FASTER, nothing)}, Result
    )
    return replace(
        told,
        rounds_ms=tuple(engine),
        float_rounds_ms=tuple(baseline),
        ratio=float(np.median(engine / baseline)),
        ratio_interval=interval_of_ratio(engine / baseline, 1.0, generator),
        slowdown=slowdown,
        **changes,
    )


def width(of: Result) -> float:
    low, high = of.ratio_interval
    return high - low


def test_one_result_stays_as_it_is():
    assert pooled([result(1)], 0) == result(1)


def test_the_rounds_of_all_count():
    results = [result(seed) for seed in range(8)]
    found = pooled(results, 0)
    assert found.rounds_ms == tuple(ms for each in results for ms in each.rounds_ms)
    engine, baseline = np.array(found.rounds_ms), np.array(found.float_rounds_ms)
    assert found.ratio == pytest.approx(np.median(engine / baseline))
    assert found.ratio_interval[0] < found.ratio < found.ratio_interval[1]
    assert (found.engine_ms, found.float_ms) == (pytest.approx(np.median(engine)), pytest.approx(np.median(baseline)))
    assert found.throughput == pytest.approx(1000 / found.engine_ms)
    assert width(found) < 0.6 * np.mean([width(each) for each in results]), "eight times the rounds"


def test_what_was_measured_beside_other_work_does_not_count_where_something_else_was():
    quiet = result(1)
    assert pooled([result(2, 1.3, 0.8), quiet], 0) == quiet
    assert pooled([quiet, result(2, 1.3, 0.8)], 0) == quiet
    called = result(2, 1.3, 0.8, p99_ms=3.0, p99_calls=700, p99_note=None)
    assert pooled([replace(quiet, p99_ms=None, p99_calls=0, p99_note="none"), called], 0) == replace(
        quiet, p99_ms=3.0, p99_calls=700, p99_note=None
    )
    both = pooled([result(2, 1.3, 0.8), quiet, result(3)], 0)
    assert both.rounds_ms == (*quiet.rounds_ms, *result(3).rounds_ms)


def test_the_quietest_counts_where_the_machine_was_always_busy():
    assert pooled([result(1, 1.3), result(2, 1.2), result(3, 1.4)], 0) == result(2, 1.2)


def test_another_plan_is_another_engine():
    one, other = (result(seed, plan_sha256=digit * 64) for seed, digit in ((1, "a"), (2, "b")))
    assert pooled([one, other], 0) == other
