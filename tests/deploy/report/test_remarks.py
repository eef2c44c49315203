"""Sentences about a timing, made of figures that are known."""

from __future__ import annotations

import pytest

from deploy.report.remarks import timing_remarks
from tests.deploy.report.report_sample import LATENCY, report

FIGURES = {**LATENCY, "engine_ms": 0.1, "throughput": 10_000}


@pytest.mark.parametrize(
    ("figures", "remarks"),
    [
        ({}, []),
        ({"enqueue_ms": 0.02, "hot_ms": 0.1, "cold_ms": 0.105}, []),
        ({"enqueue_ms": 0.09}, ["It is bound by launches: the host takes 0.09 ms to enqueue a call of 0.1 ms"]),
        (
            {"hot_ms": 0.1, "cold_ms": 0.15},
            ["With other data in the GPU's L2 cache a call takes 0.15 ms, right behind another call 0.1 ms."],
        ),
        (
            {"throttled": ["oc3_event_cnt rose by 2"]},
            ["The machine slowed down while it was timed, each time that was tried: oc3_event_cnt"],
        ),
        ({"slowdown": 1.05}, []),
        ({"slowdown": 1.3}, ["Something else was at work while it was timed: the float engine took 1.3 times as long"]),
    ],
)
def test_remarks(figures, remarks):
    found = timing_remarks(report(latency={**FIGURES, **figures}).latency)
    assert [text[: len(wanted)] for text, wanted in zip(found, remarks, strict=True)] == remarks
