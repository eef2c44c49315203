"""Small experiments for ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.devices.base import Candidate, Experiment
from deploy.lowering.onnx_files import sha256
from deploy.runner.protocol import Protocol

SETTINGS: dict[str, Any] = {
    "providers": ["CPUExecutionProvider"],
    "graph_optimization_level": "ORT_ENABLE_ALL",
    "disabled_optimizers": [],
    "session_config": {},
    "intra_op_num_threads": 1,
    "inter_op_num_threads": 1,
}
QUICK = Protocol(rounds=5, round_ms=1.0, calls=2, singles=200, sets=1)
WIDTH = 64


def model_file(directory: Path, layers: int, width: int = WIDTH) -> Path:
    """Write a chain of matrix products, which takes time in proportion to `layers`."""
    weight = np.eye(width, dtype=np.float32)
    names = ["x", *(f"h{index}" for index in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[index], "w"], [names[index + 1]]) for index in range(layers)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    file = directory / f"chain.{layers}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)
    return file


def candidate(file: Path, **settings: Any) -> Candidate:
    return Candidate(sha256(file)[:16], file, {**SETTINGS, **settings})


def experiment(directory: Path, layers: tuple[int, ...] = (8, 32), **changes: Any) -> Experiment:
    """An experiment with a candidate for each number of layers; the float model has 16."""
    directory.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "runtime": "onnxruntime",
        "float_": candidate(model_file(directory, 16)),
        "candidates": tuple(candidate(model_file(directory, number)) for number in layers),
        "inputs": {"x": np.arange(WIDTH, dtype=np.float32)[None]},
        "batch": 1,
        "protocol": QUICK,
        "seed": 0,
        "fingerprint": "0123456789abcdef" * 4,
    }
    return Experiment(**{**values, **changes})


def broken_candidate(directory: Path) -> Candidate:
    """A file that no runtime takes."""
    file = directory / "broken.onnx"
    file.write_bytes(b"this is no model")
    return candidate(file)
