"""Products of plans that nobody has built, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from deploy.devices.messages import Result
from deploy.runner.experiment import CACHE_DIRECTORY
from deploy.runner.gpu import Gpu
from deploy.runner.plan_cache import BuiltPlan, Origin, PlanTensor, keep_plan, write_bytes
from deploy.runner.product import replace_directory, write_product
from deploy.runner.trt_log import Message
from deploy.runner.trt_timing import timing_cache_file
from tests.deploy.board import STATE

ORIN = Gpu("Orin", "sm87", 16, "MAXN")
FIGURES: dict[str, Any] = {
    "batch": 1, "clock": "CUDA events", "slowdown": 1.0, "engine_ms": 1.5, "float_ms": 2.0, "ratio": 0.75,
    "ratio_interval": [0.7, 0.8], "p99_ms": None,
}  # fmt: skip


def keep_measured_plan(
    place: Path, name: str, runtime: str = "tensorrt", content: bytes = b"plan", gpu: Gpu | None = ORIN
) -> dict[str, Any]:
    """Put a plan into the cache of a directory that is measured in; returns the part of its result that a product
    needs.
    """
    origin = Origin(runtime, "10.3.0", {"batch_sizes": None}, name * 4, gpu)
    built = BuiltPlan(
        content=content,
        origin=origin,
        seconds=12.5,
        flags=("STRONGLY_TYPED",),
        messages=(Message("WARNING", "slow "), Message("INFO", "builds")),
        inputs=(PlanTensor("x", "float32", (2, 3)),),
        outputs=(PlanTensor("y", "float32", (2, 3)),),
        timing_cache_sha256=None,
        from_cache=False,
    )
    keep_plan(place / CACHE_DIRECTORY, built)
    if runtime == "tensorrt":
        write_bytes(timing_cache_file(place / CACHE_DIRECTORY, origin), b"times")
    return {"name": name, "plan_sha256": built.sha256, **FIGURES}


def write_product_of(directory: Path, name: str, runtime: str = "tensorrt", **options: Any) -> None:
    """Write a product of a model at `directory`."""
    place = directory.parent / f"{directory.name}.made"
    made = write_product(place, keep_measured_plan(place, name, runtime, **options), "a board, Linux aarch64")
    assert made is not None
    replace_directory(made, directory)


def result_of(name: str, plan_sha256: str | None) -> Result:
    """A result of a device that timed a plan."""
    figures = {
        **FIGURES,
        "p99_calls": 0,
        "p99_note": "not asked for",
        "throughput": 1000 / FIGURES["engine_ms"],
        "build_seconds": 12.5,
    }
    rounds = {"rounds_ms": [1.5] * 5, "float_rounds_ms": [2.0] * 5, "layers": None}
    untold = {"enqueue_ms": None, "hot_ms": None, "cold_ms": None, "notes": [], "state": STATE}
    about = {"key": name, "name": name, "failed": None, "cause": None, "nodes": [], "plan_sha256": plan_sha256}
    return msgspec.convert({**about, **figures, **rounds, **untold}, Result)
