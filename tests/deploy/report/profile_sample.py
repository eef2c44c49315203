"""Layers as TensorRT 10.3 and TensorRT-RTX 1.7 name them, made up after published examples and builds, and the result
that holds them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from calib.formats.format import Format
from deploy.devices.messages import Layer, Result
from deploy.files.profile import ProfileFile
from deploy.runner.intervals import between_sessions
from deploy.stages.profiling import profile_of
from deploy.targets.target import target_from_name
from tests.deploy.board import NO_FIGURES, STATE

PLANNED = {name: Format.from_text(text) for name, text in {"stem": "w8a8", "body": "w8a8", "head": "w4a16b32"}.items()}


def layer(
    kind: str,
    name: str,
    inputs: str = "",
    outputs: str = "",
    nodes: tuple[str, ...] = (),
    ms: float | None = 0.01,
    weight: str = "",
) -> Layer:
    """A layer with one tensor of each type that is named."""

    def tensors(types: str, prefix: str) -> list[dict[str, Any]]:
        return [
            {"name": f"{name}.{prefix}{index}", "dtype": dtype, "shape": [8, 8]}
            for index, dtype in enumerate(types.split())
        ]

    return msgspec.convert(
        {
            "kind": kind, "name": name, "inputs": tensors(inputs, "in"), "constants": tensors(weight, "w"),
            "outputs": tensors(outputs, "out"), "onnx_nodes": nodes, "ms": ms,
        },
        Layer,
    )  # fmt: skip


TENSORRT_10 = (
    layer("Reformat", "Reformatting CopyNode for Input Tensor 0 to stem/x_QuantizeLinear", "Half", "Half", ms=0.02),
    layer("Reformat", "stem/x_QuantizeLinear", "Half", "Int8", ("stem/Q",), 0.03),
    layer("CaskConvolution", "stem + relu", "Int8", "Int8", ("stem", "relu"), 0.2, "Int8"),
    layer("Reformat", "Reformatting CopyNode for Input Tensor 0 to body", "Int8", "Int8", ms=0.05),
    layer("CaskConvolution", "body", "Half", "Half", ("body",), 0.3, "Half"),
    layer("Reformat", "h copy", "Half", "Half", ms=0.01),
    layer("CaskPooling", "pool", "Half", "Half", ("pool",), 0.04),
    layer("NoOp", "squeeze", "Half", "Half", ms=None),
    layer("kgen", "__myl_ReplCastMulCastFc_myl0_1", "Half", "Half", ("head", "head/DQ"), 0.35, "Int4"),
)
RTX = (
    layer("kgen", "__myl_MulMinMaxRounCastReshConcResh_myl0_0", "Half", "Int8", ("stem",), 0.03),
    layer("correlation", "stem_myl0_1", "Int8", "Int8", ("stem",), 0.2, "Int8"),
    layer("kgen", "__myl_Tran_myl0_2", "Int8", "Int8", (), 0.02),
    layer("kgen", "__myl_Move_myl0_3", "Int8", "Int8", (), 0.01),
    layer("correlation", "body_myl0_4", "Int8", "Half", ("body",), 0.2, "Int8"),
    layer("kgen", "__myl_MulCastAddMove_myl0_5", "Half", "Half", ("body", "add"), 0.05),
    layer("runtime_fusion", "__myl_CastMulCastFc_myl0_6", "Half", "Half", ("head",), 0.3, "Int4"),
    layer("kgen", "__myl_Cast_myl0_7", "Half", "Float", (), 0.01),
)


def result(layers: tuple[Layer, ...] | None, enqueue_ms: float | None = 0.25, rounds: int = 41, **about: Any) -> Result:
    """An engine of 1 ms beside a float engine of 2 ms."""
    times = {
        "engine_ms": 1.0,
        "float_ms": 2.0,
        "p99_note": "few",
        "p99_calls": 0,
        "throughput": 1000.0,
        "build_seconds": 1.0,
    }
    known = {
        "key": "0" * 16,
        "name": "1" * 16,
        "batch": 1,
        "failed": None,
        "cause": None,
        "nodes": [],
        "notes": [],
        "state": STATE,
        **about,
    }
    measured = {
        "slowdown": 1.0,
        "ratio": 0.5,
        "ratio_interval": list(between_sessions(0.5, (0.5, 0.5))),
        "rounds_ms": [1.0] * rounds,
        "float_rounds_ms": [2.0] * rounds,
    }
    plain = {**NO_FIGURES, **known, **times, **measured, "clock": "CUDA events, CUDA graph", "enqueue_ms": enqueue_ms}
    made = msgspec.convert(plain, Result)
    return msgspec.structs.replace(made, layers=layers)


def profile(layers: tuple[Layer, ...], enqueue_ms: float | None = 0.25, machine: str = "a board") -> ProfileFile:
    target = target_from_name("jetson-orin" if layers is TENSORRT_10 else "tensorrt-rtx")
    return profile_of(target, result(layers, enqueue_ms), PLANNED, machine, "a policy")
