"""A ViT-B-shaped model of 86 million parameters, from PyTorch to ONNX Runtime's engine and a TensorRT-RTX plan for
SM89.

Usage: vit_b.py [--seed N ...]

Random weights, one thread. A third of the linear layers each is w8a8, w4a16b128 and float, drawn by the seed; ranges
from 4 random images, weights rounded to nearest. Recorded: wall and CPU seconds and peak memory behind every step,
whether every layer's kernel is the planned one, how many attention blocks are one fused kernel, and the weights in the
plan beside what the policy's own arithmetic says.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from networks import vit_b
from records import keep

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP16, FP32, Format, formats_from_text
from calib.network.fold import trace_folded
from calib.network.units import Unit, find_units
from calib.task import Batch
from deploy.backends import backend_of, onnxruntime, tensorrt
from deploy.devices.messages import Layer
from deploy.lowering.export import export_float
from deploy.targets.target import target_from_name
from smpq.quantized.plan import QdqRules, plan_from_policy

COMPUTE_CAPABILITY = "sm89"
IMAGES = 4
MIXED = formats_from_text("w8a8,w4a16b128,fp16")
BARS = {"wall_seconds": 240, "peak_gb": 8.0, "weights_error": 0.05}


class Steps:
    """Wall and CPU seconds since the start, and peak memory, behind every step."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()
        self.rows: list[dict] = []

    def done(self, step: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        self.rows.append(
            {"step": step, "wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "peak_gb": round(peak, 2)}
        )
        print(self.rows[-1], file=sys.stderr)


def mixed_policy(units: tuple[Unit, ...], seed: int) -> dict[str, Format]:
    """Give a third of the linear layers each format, in random order; the convolution stays float."""
    linear = [unit.path for unit in units if "conv" not in unit.operator]
    random.Random(seed).shuffle(linear)
    drawn = {path: MIXED[index * len(MIXED) // len(linear)] for index, path in enumerate(linear)}
    return {unit.path: drawn.get(unit.path, FP16) for unit in units}


def expected_bytes(units: tuple[Unit, ...], formats: dict[str, Format], parameters: int) -> float:
    """Bytes of all weights by the formats alone: integers, half scales for each block or channel, half for all the
    rest.
    """
    total = 2.0 * (parameters - sum(unit.parameters for unit in units))
    for unit in units:
        chosen = formats[unit.path]
        scales = 0 if chosen.is_float else unit.parameters / (chosen.weight_block or unit.in_features)
        total += unit.parameters * chosen.weight_bits / 8 + 2 * scales
    return total


def fused_attentions(kernels: tuple[Layer, ...]) -> int:
    """Kernels that hold a softmax and the two products around it."""
    products = [[node.rsplit("/", 1)[-1].split("_")[0] for node in kernel.onnx_nodes] for kernel in kernels]
    return sum("Softmax" in names and names.count("MatMul") == 2 for names in products)


class Model:
    """The traced network with its float ONNX file, and plans for policies."""

    def __init__(self, directory: Path, steps: Steps) -> None:
        images = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        self.batch = Batch((images,), None)
        model = vit_b()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.traced, _ = trace_folded(model, (images[:2],))
        self.units, _ = find_units(self.traced)
        self.directory, self.steps = directory, steps
        steps.done("trace")
        export_float(self.traced, self.units, directory / "model.float.onnx")
        steps.done("export")

    def lowered(self, formats: dict[str, Format], name: str) -> Path:
        """Calibrate, round and write the file for one target."""
        target = target_from_name(name)
        settings = CalibrationSettings("minmax", "nearest", target.activation_scheme)
        calibration = Calibration(self.traced, self.units, [self.batch], settings)
        self.steps.done(f"{name}: calibrate")
        rules = QdqRules(target.activation_scheme, target.quantize_outputs, target.quantize_skips)
        plan = plan_from_policy(formats, self.units, self.traced, calibration, rules)
        path = self.directory / f"model.{name}.onnx"
        backend_of(target).lower(self.directory / "model.float.onnx", plan, self.units, path)
        self.steps.done(f"{name}: round and lower")
        return path

    def built(self, formats: dict[str, Format]) -> tensorrt.Built:
        """Return the record of the plan for the GPU."""
        onnx = self.lowered(formats, "tensorrt-rtx")
        record = tensorrt.build_plan(onnx, onnx.with_suffix(".plan"), "tensorrt-rtx", COMPUTE_CAPABILITY)
        if isinstance(record, tensorrt.BuildFailed):
            sys.exit(record.reason)
        self.steps.done("tensorrt-rtx: build")
        return record

    def ort_kernels_as_planned(self, formats: dict[str, Format]) -> int:
        """Return how many layers of ONNX Runtime's engine have the kernel that was planned."""
        onnx = self.lowered(formats, "ort-cpu")
        engine = self.directory / "engine.ort-cpu.onnx"
        record = onnxruntime.build_engine(onnx, engine)
        if isinstance(record, tensorrt.BuildFailed):
            sys.exit(record.reason)
        checks = onnxruntime.check_units(onnxruntime.unit_kernels(engine, self.units), formats)
        self.steps.done("ort-cpu: build and check")
        return sum(check.agrees for check in checks)


def run(seed: int) -> dict:
    """Do all of it once."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        steps = Steps()
        model = Model(Path(directory), steps)
        formats = mixed_policy(model.units, seed)
        record = model.built(formats)
        checks = tensorrt.check_units(record.layers, formats)
        on_cpu = {path: FP32 if chosen == FP16 else chosen for path, chosen in formats.items()}
        cpu_agree = model.ort_kernels_as_planned(on_cpu)
        needed = steps.rows[-1]
        float_plan = model.built(dict.fromkeys(formats, FP16))
    expected = expected_bytes(model.units, formats, model.parameters)
    counts = {str(each): sum(chosen == each for chosen in formats.values()) for each in MIXED}
    return {
        "seed": seed,
        "parameters": model.parameters,
        "layers": counts,
        **{key: needed[key] for key in ("wall_seconds", "cpu_seconds", "peak_gb")},
        "kernels_as_planned": {
            "tensorrt-rtx": sum(check.agrees for check in checks),
            "ort-cpu": cpu_agree,
            "of": len(checks),
        },
        "other_kernels": [str(check) for check in checks if not check.agrees],
        "fused_attentions": {"mixed": fused_attentions(record.layers), "fp16": fused_attentions(float_plan.layers)},
        "kernels": {"mixed": len(record.layers), "fp16": len(float_plan.layers)},
        "weights_bytes": {"mixed": record.weights_bytes, "fp16": float_plan.weights_bytes},
        "expected_bytes": {"mixed": round(expected), "fp16": 2 * model.parameters},
        "weights_error": round((record.weights_bytes or 0) / expected - 1, 4),
        "runtime": f"tensorrt-rtx {record.row.versions['tensorrt-rtx']}",
        "steps": steps.rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--one", type=int, help="do one seed and print it, instead of starting a process for each")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(run(options.one)))
        return
    rows = []
    for seed in options.seed:
        # A process for each, because peak memory is that of a process.
        command = [sys.executable, __file__, "--one", str(seed)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    keep(
        "vit_b", "python benchmarks/vit_b.py --seed " + " ".join(map(str, options.seed)), options.seed, rows, bars=BARS
    )


if __name__ == "__main__":
    main()
