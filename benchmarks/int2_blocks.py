"""2-bit weights in blocks on ONNX Runtime's CPU kernels: speed of single layers by block and rows, and of an MLP that
mixes 2, 4 and 8 bits; with the kernels found, and how far engine and file are from the fake-quantised model.

Usage: int2_blocks.py [SEED]

`file_error` is of the file computed as it is written, `engine_error` of the engine, both against the fake-quantised
model: mean absolute difference in standard deviations of the output. MatMulNBits rounds its inputs to 8 bits, block by
block; `kernel_error` is of the engine against a fake-quantised model that does so too.

Ratios are to the fp32 engine of the same network: one thread, CPU seconds of that thread, interleaved rounds, 95 %
bootstrap intervals.
"""

import itertools
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from records import keep
from torch import nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from deploy.backends import backend_of
from deploy.backends import onnxruntime as ort
from deploy.backends.onnxruntime.engine import open_session
from deploy.lowering.export import export_float
from deploy.run.workspace import rules_of
from deploy.runner.protocol import measure_engines
from deploy.targets.target import target_from_name
from smpq.quantized.quantize import FakeQuantizer

ROWS = (1, 8, 64)
LAYER = ("fp32", "w8a8", "w4a16b128", "w2a16", *(f"w2a16b{block}" for block in (16, 32, 64, 128, 256)))
MLP = {
    "fp32": ("fp32",) * 3,
    "w8a8": ("w8a8",) * 3,
    "w4a16b128": ("w4a16b128",) * 3,
    "w2a16b128": ("w2a16b128",) * 3,
    "2, 4 and 8 bits": ("w2a16b128", "w4a16b128", "w8a8"),
}


@dataclass(frozen=True)
class InBlocks:
    """Rounds the last dimension to signed 8-bit integers with one scale for each block."""

    block: int

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        blocks = tensor.unflatten(-1, (-1, self.block))
        scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
        return ((blocks / scale).round() * scale).flatten(-2)


@dataclass(frozen=True)
class Calls:
    """An engine with its inputs, to be timed."""

    session: Any
    feeds: dict[str, np.ndarray]
    clock: str = "thread CPU time"

    def time(self, repeats: int) -> float:
        start = time.thread_time()
        for _ in range(repeats):
            self.session.run(None, self.feeds)
        return 1000 * (time.thread_time() - start) / repeats


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers with a ReLU between two of them."""
    found: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        found += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*found[:-1])


def compared(name: str, model: nn.Module, plans: dict[str, tuple[str, ...]], rows: int) -> list[dict[str, object]]:
    """Build the engines of all plans, time them interleaved, and compare each with the fake-quantised model."""
    target = target_from_name("ort-cpu")
    batch = torch.randn(64, model[0].in_features)
    traced = TracedModel(model.eval(), (batch[:2],))
    units, _ = find_units(traced)
    settings = CalibrationSettings("minmax", "nearest", target.activation_scheme)
    quantizer = FakeQuantizer(
        traced, units, Calibration(traced, units, [Batch((batch,), None)], settings), rules_of(target)
    )
    results: dict[str, dict[str, object]] = {}
    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        export_float(traced, units, source)
        for label, texts in plans.items():
            model_file, engine = Path(folder) / f"{len(calls)}.onnx", Path(folder) / f"{len(calls)}.engine.onnx"
            plan = quantizer.plan({unit.path: Format.from_text(text) for unit, text in zip(units, texts, strict=True)})
            backend_of(target).lower(source, plan, units, model_file)
            exact = ort.build_engine(model_file, engine, exact=True)
            expected = traced.run((batch,), quantizer.edits(plan)).numpy()
            far = {"file_error": error(engine, exact, batch, expected)}
            record = ort.build_engine(model_file, engine)
            far["engine_error"] = error(engine, record, batch, expected)
            edits = quantizer.edits(plan)
            blocks = {(unit.inputs[0], unit.calls[0]): plan.weights.get(unit.path) for unit in units}
            rounded = {
                edge: InBlocks(weight.block or 32)
                for edge, weight in blocks.items()
                if weight and edge not in edits.edges
            }
            alike = traced.run((batch,), replace(edits, edges={**edits.edges, **rounded})).numpy()
            far["kernel_error"] = error(engine, record, batch, alike)
            results[label] = {
                "network": name, "rows": rows, "plan": label, "kernels": kernels(engine, record), **far,
                "megabytes": round(record.size_bytes / 1e6, 3),
            }  # fmt: skip
            session = open_session(engine, record)
            feeds = {session.get_inputs()[0].name: batch[:rows].numpy()}
            calls[label] = Calls(session, feeds)
        timings = measure_engines(calls, "fp32")
    for label, timing in timings.items():
        low, high = timing.ratio_interval
        results[label] |= {
            "cpu_ms": round(timing.latency_ms, 4), "ratio": round(timing.ratio, 3),
            "interval": [round(low, 3), round(high, 3)],
        }  # fmt: skip
    return list(results.values())


def error(engine: Path, record: object, batch: torch.Tensor, expected: np.ndarray) -> float:
    """Mean absolute difference of the output, in standard deviations of the output."""
    session = open_session(engine, record)
    (output,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return float(f"{np.abs(output - expected).mean() / expected.std():.2e}")


def kernels(engine: Path, record: object) -> list[str]:
    """The products of the graph that really runs; of MatMulNBits the bits and the block."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(engine, record, optimized=optimized)
        graph = onnx.load(str(optimized)).graph
    found = []
    for node in graph.node:
        if node.op_type.startswith(("MatMul", "Gemm", "FusedGemm", "DequantizeLinear")):
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            found.append(
                f"MatMulNBits(bits={numbers['bits']}, block_size={numbers['block_size']})"
                if "block_size" in numbers and "bits" in numbers
                else node.op_type
            )
    return found


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    torch.manual_seed(seed)
    rows = []
    for count in ROWS:
        rows += compared("linear 1024 x 4096", layers(1024, 4096), {text: (text,) for text in LAYER}, count)
    for count in ROWS[:2]:
        rows += compared("MLP 3 x 1024", layers(1024, 1024, 1024, 1024), MLP, count)
    keep(
        "int2_blocks", "python benchmarks/int2_blocks.py", [seed], rows, clock="CPU seconds of one thread, interleaved"
    )


if __name__ == "__main__":
    main()
