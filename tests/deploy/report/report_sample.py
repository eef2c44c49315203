"""Reports such as a run writes. They are made as plain values, which a test may change, and checked as the file is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

from deploy.files.report import LayerRow, ReportedStep, ReportFile
from deploy.targets.target import target_from_name

RUN = Path("runs/mine")
"""The run directory as a person typed it."""
LATENCY: dict[str, Any] = {
    "ratio": 0.6421, "interval": [0.6388, 0.6467], "engine_ms": 1.884, "float_ms": 2.934, "p99_calls": 1000,
    "p99_note": None, "p99_ms": 2.41, "throughput": 530.8, "enqueue_ms": None, "hot_ms": None, "cold_ms": None,
    "slowdown": 1.0, "throttled": [], "clock": "thread CPU time", "batch": 1, "rounds": 15,
    "machine": "a processor, Linux x86_64", "predicted_ratio": 0.639, "predicted_interval": [0.621, 0.657],
    "predicted_from": 7,
}  # fmt: skip


def stage(
    mean: float | None, change: float | None = None, agreement: float | None = None, not_run: str | None = None
) -> dict[str, Any]:
    return {
        "mean": mean,
        "interval": None if mean is None else [mean - 0.006, mean + 0.006],
        "change": change,
        "change_interval": None if change is None else [change - 0.001, change + 0.001],
        "agreement": agreement,
        "not_run": not_run,
        "samples": None if mean is None else 10_000,
    }


def layer(path: str, index: int = 0, bits: int = 8, **other: Any) -> dict[str, Any]:
    score = None if bits >= 16 else -0.002 * (1 + index % 5)
    return {
        "path": path,
        "operator": "conv2d",
        "parameters": 432 * (1 + index // 6),
        "macs": 100_000,
        "format": f"fp{bits}" if bits >= 16 else f"w{bits}a8",
        "bits": bits,
        "score": score,
        "standard_error": None if score is None else 0.0005,
        "interval": None if score is None else [score - 0.001, score + 0.001],
        "samples": 40,
        "alone": score,
        "kernel": "QLinearConv" if bits < 16 else "Conv",
        "kernel_agrees": True,
        **other,
    }


VERIFICATION: dict[str, Any] = {
    "schema": 5,
    "policy": "conv1=w8a8",
    "metric": "top-1",
    "samples": 10_000,
    "stages": {
        "eager": stage(0.885),
        "float": stage(0.885, 0.0, 1.0),
        "fake_quant": stage(0.8842, -0.0008, 0.991),
        "onnx": stage(0.8842, 0.0, 1.0),
        "engine": stage(0.8841, -0.0001, 0.9997),
    },
    "whole": {"change": -0.0009, "interval": [-0.0029, 0.0011], "agreement": 0.9908},
    "confidence": {
        "first": {"low": 0.44, "median": 0.991, "high": 1.0},
        "last": {"low": 0.41, "median": 0.988, "high": 1.0},
        "change": -0.0061,
        "interval": [-0.0072, -0.005],
    },
    "lost_at": None,
    "explanation": "",
}


def report(count: int = 20, **other: Any) -> ReportFile:
    """A run on ort-cpu that met its budget; `other` takes the place of some of its content."""
    return msgspec.convert(plain_report(count, **other), ReportFile)


def destination(target: str) -> dict[str, Any]:
    """Where the engine of a target runs."""
    known = target_from_name(target, look=False)
    return {
        "needs_gpu": known.needs_gpu,
        "timed": known.timed,
        "portable": bool(known.providers),
        "compute_capabilities": list(known.compute_capabilities),
    }


def plain_report(count: int = 20, **other: Any) -> dict[str, Any]:
    """What is in the file of `report`."""
    return {
        "schema": 13,
        "task": "cifar10-resnet20",
        "target": "ort-cpu",
        "destination": destination(other.get("target", "ort-cpu")),
        "engine": "engine.ort-cpu.onnx",
        "float_engine": "engine.float.onnx",
        "policy": {"conv1": "w8a8"},
        "accuracy": {"eager": 0.885, "float": 0.885, "fake_quant": 0.8842, "onnx": 0.8842, "engine": 0.8841},
        "verification": VERIFICATION,
        "latency": LATENCY,
        "latency_note": None,
        "size_bytes": 301_000,
        "float_size_bytes": 1_093_000,
        "avg_bits": 8.31,
        "bops": 3.1e9,
        "float_bops": 4.2e10,
        "budget": "latency=0.65x",
        "is_float": False,
        "limits": [
            {"cost": "latency", "limit": 0.65, "reached": 0.6421, "unit": "x", "met": True,
             "interval": [0.6388, 0.6467]},
        ],
        "met": True,
        "layers": [
            layer(f"layer{1 + i // 6}.{i % 6 // 2}.conv{1 + i % 2}", i, 32 if i == 0 else 8) for i in range(count)
        ],
        "cut_short": False,
        "observations": [
            observation("uniform w8a8", 0.58, 0.61), observation("turn 1", 0.63, 0.662, met=False),
            observation("turn 2", 0.639, 0.642),
        ],
        "stability": None,
        "contributions": None,
        "pareto": [],
        "curve": None,
        "scores": {
            "method": "shapley", "value": "kl", "estimator": "permutation", "evaluations": 1640, "permutations": 40,
            "seed": 0, "stop_reason": "precision", "notes": [],
        },
        "skipped": [],
        "refused": {},
        "not_on_orin": [],
        "sizes": {},
        "synthetic": None,
        "warnings": [],
        "finetuning": None,
        "settings": {"rounding": "gptq", "formats": ["w8a8", "fp32"], "resume": True},
        "tuning": "finetune",
        "options": {"--task": ["cifar10-resnet20"]},
        "versions": {"torch": "2.13.0", "onnxruntime": "1.24.1"},
        "machine": "a processor, Linux x86_64",
        "seconds": {"score": 81.2, "measure": 12.0},
        **other,
    }  # fmt: skip


def observation(
    label: str, predicted: float, measured: float | None, *, met: bool = True, refused: str | None = None
) -> dict[str, Any]:
    return {
        "label": label,
        "predicted": predicted,
        "predicted_interval": [predicted - 0.018, predicted + 0.018],
        "measured": measured,
        "measured_interval": None if measured is None else [measured - 0.004, measured + 0.004],
        "refused": refused,
        "met": met,
    }


def layer_rows(*layers: dict[str, Any]) -> tuple[LayerRow, ...]:
    return msgspec.convert(layers, tuple[LayerRow, ...])


def observation_rows(*observations: dict[str, Any]) -> tuple[ReportedStep, ...]:
    return msgspec.convert(observations, tuple[ReportedStep, ...])


def unmeasured(**other: Any) -> ReportFile:
    """Plans for GPUs that are not here."""
    verification = {
        **VERIFICATION,
        "stages": {**VERIFICATION["stages"], "engine": stage(None, not_run="an NVIDIA GPU is needed")},
    }
    content = {
        "target": "tensorrt-rtx",
        "engine": {"sm86": "engine.tensorrt-rtx.sm86.plan", "sm120": "engine.tensorrt-rtx.sm120.plan"},
        "float_engine": None,
        "verification": verification,
        "latency": None,
        "latency_note": "timing a plan needs an NVIDIA GPU of its compute capability",
        "machine": None,
        "budget": "avg_bits=9",
        "limits": [{"cost": "avg_bits", "limit": 9, "reached": 8.31, "unit": "bits", "met": True}],
        "observations": [],
    }
    return report(**{**content, **other})


def long(count: int = 140) -> ReportFile:
    """Many layers, everything wrong that can be, and hardly anything fast."""
    generator = random.Random(0)
    layers = [
        layer(
            f"encoder.blocks.{i // 6}.attention.projection_{i % 6}",
            i,
            generator.choice([2, 3, 4, 8, 8, 16]),
            kernel_agrees=i % 37 != 5,
        )
        for i in range(count)
    ]
    for one in layers:
        if one["score"] is not None:
            score = -generator.expovariate(150)
            one["score"], one["interval"] = score, [score * 1.6 - 0.001, score * 0.4 + 0.001]
    content: dict[str, Any] = {
        "layers": layers,
        "latency": {
            **LATENCY,
            "ratio": 1.12,
            "interval": [1.08, 1.15],
            "engine_ms": 12.1,
            "float_ms": 10.8,
            "predicted_ratio": 0.8,
        },
        "limits": [
            {"cost": "latency", "limit": 0.65, "reached": 1.12, "unit": "x", "met": False},
            {"cost": "size", "limit": 500_000, "reached": 301_000, "unit": "bytes", "met": True},
        ],
        "met": False,
        "budget": "latency=0.65x,size=500000 bytes",
        "verification": {
            **VERIFICATION,
            "lost_at": "engine",
            "explanation": "The engine disagrees with the ONNX graph",
        },
        "observations": [
            observation(f"turn {i}", 0.9 + 0.02 * generator.random(), 1.1 + 0.03 * generator.random(), met=False)
            for i in range(14)
        ],
        "pareto": [
            {"cost": "avg_bits", "reached": bits, "value": -0.5 / bits**2} for bits in (2, 2.5, 3, 4, 5, 6, 8, 8.5)
        ],
        "skipped": [{"path": "embedding", "operator": "Embedding", "reason": "no quantised kernel for this operator"}],
        "refused": {"head: w4a16b128": "its input dimension 100 is not a multiple of 128"},
        "warnings": ["14 conversions between integers and floats remain in the graph"],
    }
    return report(**content)
