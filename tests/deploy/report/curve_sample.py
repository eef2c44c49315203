"""A curve such as `smpq curve` writes, as plain values."""

from __future__ import annotations

from typing import Any

FLOAT_MS = 2.934


def point(
    name: str, kind: str, ratio: float, accuracy: float, policy: dict[str, str] | None, *, dominated: bool = False
) -> dict[str, Any]:
    """A point of a curve whose float engine is 90 % accurate."""
    change = round(accuracy - 0.9, 4)
    margin = 0.0 if kind == "float" else 0.003
    return {
        "name": name,
        "kind": kind,
        "policy": None if policy is None else {"schema": 1, "policy": policy, "float_joins": []},
        "ratio": ratio,
        "ratio_interval": [ratio - (kind != "float") * 0.004, ratio + (kind != "float") * 0.004],
        "ms": ratio * FLOAT_MS,
        "size_bytes": None if policy is None else 301_000 * ratio,
        "value": None if policy is None else change,
        "judged": {
            "accuracy": accuracy,
            "interval": [accuracy - 0.006, accuracy + 0.006],
            "change": change,
            "change_interval": [change - margin, change + margin],
            "measured_on": "engine",
        },
        "dominated": dominated,
    }


def curve(path: str = "layer1.conv1", **other: Any) -> dict[str, Any]:
    """Five engines of three layers; `other` takes the place of some of its content."""

    def plan(*formats: str) -> dict[str, str]:
        return dict(zip(("stem", path, "head"), formats, strict=True))

    return {
        "schema": 2,
        "cost": "latency",
        "machine": "a processor, Linux x86_64",
        "not_timed": None,
        "float_cost": FLOAT_MS,
        "metric": "top-1",
        "samples": 10_000,
        "evaluation": "e" * 64,
        "stop_reason": "16 engines are measured",
        "points": [
            point("P1", "uniform", 0.58, 0.8612, plan("w8a8", "w8a8", "w8a8")),
            point("P2", "found", 0.6421, 0.8985, plan("fp32", "w8a8", "w8a8")),
            point("P3", "quantize_static", 0.71, 0.8571, None, dominated=True),
            point("P4", "found", 0.83, 0.8871, plan("fp32", "fp32", "w8a8"), dominated=True),
            point("P5", "float", 1.0, 0.9, plan("fp32", "fp32", "fp32")),
        ],
        **other,
    }


def sized_curve() -> dict[str, Any]:
    """The same without a machine: sizes, simulated."""
    content = curve(cost="size", machine=None, not_timed="simulate has no engine to time", float_cost=301_000.0)
    content["points"] = [each for each in content["points"] if each["policy"] is not None]
    for each in content["points"]:
        each |= {"ratio_interval": None, "ms": None}
        each["judged"]["measured_on"] = "fake_quant"
    return content
