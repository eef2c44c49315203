"""Kernels of residual networks with and without a quantised operand of each add, as TensorRT-RTX compiles them.

Usage: residual_adds.py [--scale N] [--compute-capability sm89] [NETWORK ...]

Every layer is w8a8. What differs is which adds read their skip as integers: none (`float joins`), those whose skip
another layer reads as integers and no layer makes (`read skips`, an earlier rule), all (`w8a8`). Needs no GPU.
TensorRT-RTX computes an int8 convolution and what follows in two kernels in any case; `activation_bytes` is what all
kernels read and write besides constants.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import torch
from records import keep

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP16, Format
from calib.network.fold import trace_folded
from calib.network.residual import residual_adds
from calib.network.units import find_units
from calib.task import Batch
from deploy.backends import backend_of, tensorrt
from deploy.devices.messages import Tensor
from deploy.lowering.export import export_float
from deploy.run.workspace import rules_of
from deploy.targets.target import target_from_name
from smpq.problem.groups import find_groups
from smpq.problem.joins import find_joins
from smpq.quantized.quantize import FakeQuantizer
from tests.deploy.residuals import NETWORKS

STAGES = 7
W8A8 = Format.from_text("w8a8")


def quantized_operands(path: Path) -> dict[int, int]:
    """How many adds of two computed tensors have none, one or two operands behind a DequantizeLinear."""
    graph = onnx.load(str(path)).graph
    makers = {output: node for node in graph.node for output in node.output}
    found: Counter[int] = Counter()
    for node in graph.node:
        if node.op_type == "Add" and all(name in makers for name in node.input):
            found[sum(makers[name].op_type == "DequantizeLinear" for name in node.input)] += 1
    return {number: found[number] for number in range(3)}


def described(record: tensorrt.Built) -> dict[str, object]:
    """What is asked of a plan: how many kernels, by kind, and how many convolutions hold an add or read a float."""
    kernels = record.layers
    convolutions = [kernel for kernel in kernels if kernel.kind == "correlation"]
    adds = [
        kernel
        for kernel in kernels
        if any(node.rsplit("/", 1)[-1].split("_")[0] == "Add" for node in kernel.onnx_nodes)
    ]
    return {
        "kernels": len(kernels),
        "kinds": dict(sorted(Counter(kernel.kind for kernel in kernels).items())),
        "kernels_of_adds": dict(sorted(Counter(kernel.kind for kernel in adds).items())),
        "convolutions_with_int8_output": sum(kernel.outputs[0].dtype == "Int8" for kernel in convolutions),
        "activation_bytes": sum(_bytes(tensor) for kernel in kernels for tensor in (*kernel.inputs, *kernel.outputs)),
        "weights_bytes": record.weights_bytes,
    }


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * {"Int8": 1, "Half": 2}.get(tensor.dtype, 4)


def measured(name: str, scale: int, compute_capability: str) -> dict[str, object]:
    """Build one network with all joins in float, with none, and in fp16."""
    target = target_from_name("tensorrt-rtx", [compute_capability])
    torch.manual_seed(0)
    model = NETWORKS[name](scale, STAGES)
    images = torch.randn(4, 3, 224 if scale == 1 else 64, 224 if scale == 1 else 64)
    model.train()(images)  # BatchNorm with statistics, as training would leave it
    traced, _ = trace_folded(model.eval(), (images[:2],))
    units, _ = find_units(traced)
    settings = CalibrationSettings("minmax", "nearest", target.activation_scheme)
    calibration = Calibration(traced, units, [Batch((images,), None)], settings)
    quantizer = FakeQuantizer(traced, units, calibration, rules_of(target))
    joins = {join.name for join in find_joins(traced, find_groups(traced, units), rules_of(target))}
    calls = {call for unit in units for call in unit.calls}
    new = {
        add.name for add in residual_adds(traced, units) if add.skip in calls or add.grid != add.skip or not add.readers
    }
    policies = (
        ("fp16", FP16, set[str]()),
        ("float joins", W8A8, joins),
        ("read skips", W8A8, new),
        ("w8a8", W8A8, set[str]()),
    )
    row: dict[str, object] = {"network": name, "adds": model.adds, "joins": len(joins)}
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "model.float.onnx"
        export_float(traced, units, source)
        for label, chosen, kept in policies:
            path = Path(directory) / "model.onnx"
            backend_of(target).lower(source, quantizer.plan({unit.path: chosen for unit in units}, kept), units, path)
            record = tensorrt.build_plan(path, path.with_suffix(".plan"), "tensorrt-rtx", compute_capability)
            if isinstance(record, tensorrt.BuildFailed):
                raise SystemExit(f"{name} {label}: {record.reason}")
            row[label] = {"adds_by_quantized_operands": quantized_operands(path), **described(record)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--scale", type=int, default=1, help="divides all widths")
    parser.add_argument("--compute-capability", default="sm89")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(name, options.scale, options.compute_capability) for name in options.networks]
    command = (
        f"python benchmarks/residual_adds.py --scale {options.scale} --compute-capability {options.compute_capability}"
    )
    keep("residual_adds", command, [0], rows, scale=options.scale)


if __name__ == "__main__":
    main()
