"""Permutation walks over ResNet-20: the time of incremental evaluation against whole runs, side by side.

Usage: incremental.py CIFAR10_DIR WEIGHTS [--walks N]

512 images in batches of 128, formats w2a8, w3a8, w4a8, w8a8. A walk tries every format of one group after the other, in a random
order (63 policies). The two ways take turns walk by walk, on one thread, by the clock of that thread; values are compared.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from records import keep

from calib.calibrate import Calibration, CalibrationSettings
from calib.fold import fold_batchnorm
from calib.formats import FP32, formats_from_text
from calib.graph import TracedModel
from calib.tasks import load_task
from calib.units import find_units
from smpq.groups import find_groups
from smpq.incremental import outputs_of
from smpq.plan import Rules
from smpq.policy import Space
from smpq.quantize import FakeQuantizer
from smpq.value import divergence

IMAGES, BATCH = 512, 128


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--walks", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("cifar10-resnet20", options.data, options.weights)
    batches = task.calibration()
    folded, _ = fold_batchnorm(task.model(), batches[0].inputs)
    traced = TracedModel(folded, tuple(t[:2] for t in batches[0].inputs))
    units, _ = find_units(traced)
    groups = find_groups(traced, units)
    formats = formats_from_text("w2a8,w3a8,w4a8,w8a8")
    space = Space(groups, {group.name: (*formats, FP32) for group in groups}, FP32)
    fake = FakeQuantizer(traced, units, Calibration(traced, units, batches, CalibrationSettings()), Rules("affine"))
    batches = batches[: IMAGES // BATCH]
    float_outputs = [traced.run(batch.inputs) for batch in batches]
    generator = np.random.default_rng(0)
    rows, memory = [], {}
    for number in range(options.walks):
        policies = walk(space, generator)
        edits = [fake.edits(fake.plan(policy.by_unit(groups))) for policy in policies]
        totals = {"full": [0.0] * len(edits), "incremental": [0.0] * len(edits)}
        seconds = {}
        for way in ("full", "incremental") if number % 2 else ("incremental", "full"):
            start = time.thread_time()
            for batch, reference in zip(batches, float_outputs, strict=True):
                if way == "full":
                    outputs = ((i, traced.run(batch.inputs, each)) for i, each in enumerate(edits))
                else:
                    outputs = outputs_of(traced, batch.inputs, edits)
                for index, output in outputs:
                    totals[way][index] -= float(divergence(output, reference).sum()) / IMAGES
            seconds[way] = time.thread_time() - start
            memory.setdefault(f"peak_mb_after_first_{way}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        difference = max(abs(a - b) for a, b in zip(totals["full"], totals["incremental"], strict=True))
        rows.append({"walk": number, "policies": len(edits), **{f"{way}_s": s for way, s in seconds.items()},
                     "ratio": seconds["incremental"] / seconds["full"], "largest_difference": difference})  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    total = {way: sum(row[f"{way}_s"] for row in rows) for way in ("full", "incremental")}
    keep(
        "incremental", "python benchmarks/incremental.py CIFAR10_DIR WEIGHTS", [0], rows,
        ratio=total["incremental"] / total["full"], largest_difference=max(row["largest_difference"] for row in rows),
        peak_memory=memory | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024},
    )  # fmt: skip


if __name__ == "__main__":
    main()
