"""Permutation walks over ResNet-20: the time of incremental evaluation against whole runs, side by side.

Usage: incremental.py CIFAR10_DIR WEIGHTS [--walks N]

512 images in batches of 128, formats w2a8, w3a8, w4a8, w8a8 and fp32. A walk tries every format of one group after the
other, in a random order (81 policies). The two ways take turns walk by walk, on one thread, by the clock of that
thread; values are compared.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from records import keep

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, formats_from_text
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.tasks import load_task
from smpq.problem.groups import find_groups
from smpq.problem.policy import Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.divergence import divergence
from smpq.value.incremental import bytes_per_sample, outputs_of

IMAGES, BATCH = 512, 128
WAYS = ("full", "incremental")


def walk(space: Space, generator: np.random.Generator) -> list:
    """Return the policies of one walk from float to a random policy, in a random order of the groups."""
    policy = space.uniform(FP32)
    policies = [policy]
    for index in generator.permutation(len(space.groups)):
        group = space.groups[index]
        formats = [each for each in space.formats[group.name] if each != FP32]
        policies += [policy.with_format(group.name, each) for each in formats]
        policy = policy.with_format(group.name, formats[generator.integers(len(formats))])
    return policies


class Bench:
    """The network with its rounded weights, and the two ways to evaluate policies on it."""

    def __init__(self, data: Path, weights: Path) -> None:
        batches = load_task("cifar10-resnet20", data, weights).calibration()
        model = load_task("cifar10-resnet20", data, weights).model()
        self.traced, _ = trace_folded(model, tuple(t[:2] for t in batches[0].inputs))
        units, _ = find_units(self.traced)
        groups = find_groups(self.traced, units)
        formats = formats_from_text("w2a8,w3a8,w4a8,w8a8")
        self.space = Space(groups, {group.name: (*formats, FP32) for group in groups}, FP32)
        self.fake = FakeQuantizer(
            self.traced, units, Calibration(self.traced, units, batches, CalibrationSettings()), QdqRules("affine")
        )
        self.batches = batches[: IMAGES // BATCH]
        self.float_outputs = [self.traced.run(batch.inputs) for batch in self.batches]

    def values(self, way: str, policies: list) -> tuple[list[float], float]:
        """Return the value of every policy, and the seconds of this thread that it took."""
        edits = [self.fake.edits(self.fake.plan(policy.by_unit(self.space.groups))) for policy in policies]
        totals = [0.0] * len(edits)
        start = time.thread_time()
        for batch, reference in zip(self.batches, self.float_outputs, strict=True):
            if way == "full":
                outputs = ((index, self.traced.run(batch.inputs, each)) for index, each in enumerate(edits))
            else:
                outputs = outputs_of(self.traced, batch.inputs, edits)
            for index, output in outputs:
                totals[index] -= float(divergence(output, reference).sum()) / IMAGES
        return totals, time.thread_time() - start


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_memory(options: argparse.Namespace, way: str) -> dict[str, float]:
    """Measure in a process of its own: what one walk adds to the peak of everything before it."""
    command = [sys.executable, __file__, str(options.data), str(options.weights), "--memory", way]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--walks", type=int, default=4)
    parser.add_argument("--memory", choices=WAYS, help="only print the peak memory of one walk")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.data, options.weights)
    generator = np.random.default_rng(0)
    if options.memory:
        bench.fake.plan(bench.space.uniform(FP32).by_unit(bench.space.groups))
        policies = walk(bench.space, generator)
        for policy in policies:  # round every weight before the memory is looked at
            bench.fake.edits(bench.fake.plan(policy.by_unit(bench.space.groups)))
        before = megabytes()
        bench.values(options.memory, policies)
        print(json.dumps({"before_mb": before, "peak_mb": megabytes()}))
        return
    rows = []
    for number in range(options.walks):
        policies = walk(bench.space, generator)
        found = {way: bench.values(way, policies) for way in (WAYS if number % 2 else WAYS[::-1])}
        seconds = {way: spent for way, (_, spent) in found.items()}
        difference = max(abs(a - b) for a, b in zip(found["full"][0], found["incremental"][0], strict=True))
        rows.append({"walk": number, "policies": len(policies), **{f"{way}_s": spent for way, spent in seconds.items()},
                     "ratio": seconds["incremental"] / seconds["full"], "largest_difference": difference})  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    total = {way: sum(row[f"{way}_s"] for row in rows) for way in WAYS}
    keep(
        "incremental", "python benchmarks/incremental.py CIFAR10_DIR WEIGHTS", [0], rows,
        ratio=total["incremental"] / total["full"], largest_difference=max(row["largest_difference"] for row in rows),
        peak_memory={way: peak_memory(options, way) for way in WAYS},
        forks_mb_at_most=bytes_per_sample(bench.traced, bench.space.units) * BATCH / 2**20,
    )  # fmt: skip


if __name__ == "__main__":
    main()
