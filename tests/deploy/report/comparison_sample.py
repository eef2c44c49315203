"""Comparisons of runs that were never made."""

from __future__ import annotations

from deploy.files.comparison import (
    ComparedAccuracy,
    ComparedLatency,
    ComparedLayer,
    ComparedRun,
    ComparedScores,
    Comparison,
)
from smpq.files import Interval

METHODS = ("shapley", "hawq", "ohq", "ohq", "uniform")


def compared(index: int, layers: int) -> ComparedRun:
    mean, ratio = 0.88 - 0.01 * index, 0.6 + 0.08 * index
    widths = (2, 3, 4, 8)
    formats = tuple(f"w{widths[(number * (index + 3) // 4) % 4]}a8" for number in range(layers))
    if index == 4:
        formats = ("w3a8",) * (layers - 1) + ("fp32",)
    return ComparedRun(
        path=f"runs/{METHODS[index]}-{index}",
        method=METHODS[index],
        target="ort-cpu",
        budget="avg_bits=3",
        data_free=index == 3,
        avg_bits=2.9 + 0.02 * index,
        size_bytes=100_000 + 3_000 * index,
        accuracy=None
        if index == 4
        else ComparedAccuracy(
            metric="top-1",
            stage="engine",
            samples=10_000,
            mean=mean,
            interval=Interval(mean - 0.006, mean + 0.006),
            change=mean - 0.885,
            change_interval=Interval(mean - 0.89, mean - 0.88),
        ),
        latency=None
        if index == 1
        else ComparedLatency(ratio=ratio, interval=Interval(ratio - 0.02, ratio + 0.02), machine="a processor"),
        evaluations=400 * (index == 0),
        seconds=None if index == 2 else 312.4 / (index + 1),
        formats=formats,
        bits=tuple(32 if text == "fp32" else int(text[1]) for text in formats),
    )


def comparison(runs: int = 5, layers: int = 20) -> Comparison:
    """Runs of a network; the last is uniform, and has no scores."""
    scores = tuple(
        ComparedScores(
            first=first,
            second=second,
            moves=0 if second == 4 else 60,
            spearman=None if second == 4 else 0.95 - 0.1 * second,
            within=None if second == 4 else -0.2 + 0.1 * first,
        )
        for first in range(runs)
        for second in range(first + 1, runs)
    )
    names = tuple(
        ComparedLayer(path=f"layer{1 + i // 6}.{i % 6 // 2}.conv{1 + i % 2}", parameters=432 + i) for i in range(layers)
    )
    return Comparison(runs=tuple(compared(index, layers) for index in range(runs)), layers=names, scores=scores)
