"""Peak memory of calibration and of verification with 1,000 and with 10,000 images.

Usage: memory.py [IMAGES ...]

A small convolutional network, images of 3 x 224 x 224 that the task makes as they are asked for, in batches of 50:
as many to calibrate on as to verify with. Each stage runs in a process of its own, which says what it took at most: the
largest resident set (`ru_maxrss`). `calibrate` opens a run and rounds all weights of 8 and 4 bits; `verify` exports and
builds an engine first, as `smpq verify` finds it, and calibrates too. The bar: a stage with the most images takes at
most 1.1 times the memory that it takes with the fewest.

`moments`: 24 linear layers of 1,024 inputs, whose second moments take 4 MB each and 96 MB together, with and without
`--memory-limit`, which bounds moments, activations and kept data, each. What calibration takes above what the process
had before, without the rounded weights that it is for, must be within three times the limit.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from records import keep
from rich.console import Console
from torch import Tensor, nn

from calib.formats.integers import integer
from calib.heap import Gaps, keep_freed_blocks
from calib.rounding import Moments, rounding_from_name
from calib.task import Batch
from calib.tasks import IN_MEMORY, held_in_memory
from deploy.run.settings import Settings
from deploy.stages.making import build, export, verify
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.problem.policy import Policy
from smpq.value.workers.resources import Resources

SIZE, BATCH, CLASSES = 224, 50, 10
WIDTH, LAYERS, LIMIT_MB = 1024, 24, 80
STAGES = ("calibrate", "verify")
BAR = 1.1


class Images:
    """Batches that are made anew each time they are looped over, always the same ones."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self._count, BATCH):
            generator = torch.Generator().manual_seed(self._seed + start)
            size = min(BATCH, self._count - start)
            yield Batch(
                (torch.rand(size, 3, SIZE, SIZE, generator=generator),),
                torch.randint(CLASSES, (size,), generator=generator),
            )


class Synthetic:
    """A task with as many images as are asked for."""

    name, metric_name = "synthetic", "top-1"

    def __init__(self, images: int) -> None:
        self._images = images

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=4), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
        ).eval()  # fmt: skip

    def calibration(self) -> Images:
        return Images(self._images, 0)

    def evaluation(self) -> Images:
        return Images(self._images, 10**6)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none")

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).double()


class Wide(Synthetic):
    """Linear layers one after the other."""

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).eval()

    def calibration(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(0)
        return [Batch((torch.randn(200, WIDTH, generator=generator),), torch.zeros(200).long()) for _ in range(10)]

    evaluation = calibration


def moments(limit: float | None) -> dict[str, Any]:
    """Calibrate wide layers in this process, and return what that took above what the process had."""
    torch.set_num_threads(1)
    settings = Settings(task=IN_MEMORY, formats="w8a8,fp32", samples=BATCH)
    progress, resources = Progress(Console(file=sys.stderr, quiet=True)), Resources(workers=1, memory_limit_mb=limit)
    with (
        tempfile.TemporaryDirectory() as directory,
        held_in_memory(Wide(0)),
        open_run(Path(directory) / "run", progress, settings, resources) as workspace,
    ):
        small = Moments(torch.eye(64)[None])  # the linear algebra makes its own buffers once
        rounding_from_name("gptq")(torch.randn(64, 64), small, integer(8), None, torch.zeros(64))
        Gaps()  # what is free is given back, or calibration would find it
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _status("VmRSS")
        _ = workspace.fake_quantizer
        taken = _status("VmHWM") - before
    return {
        "stage": "moments", "memory_limit_mb": limit, "taken_mb": round(taken, 1),
        "rounded_weights_mb": LAYERS * WIDTH**2 / 2**20, "cpu_seconds": round(time.process_time(), 1),
    }  # fmt: skip


def _status(field: str) -> float:
    """Return a figure of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def run(stage: str, images: int) -> dict[str, Any]:
    """Run a stage in this process, and return what the process took."""
    torch.set_num_threads(1)
    progress = Progress(Console(file=sys.stderr, quiet=True))
    settings = Settings(task=IN_MEMORY, formats="w8a8,w4a16b16,fp32" if stage == "calibrate" else "w8a8,fp32")
    with (
        tempfile.TemporaryDirectory() as directory,
        held_in_memory(Synthetic(images)),
        open_run(Path(directory) / "run", progress, settings) as workspace,
    ):
        opened = _peak_mb()
        _ = workspace.fake_quantizer
        if stage == "verify":
            space = workspace.space
            policy = Policy({group.name: space.formats[group.name][0] for group in space.groups})
            export(workspace, policy)
            build(workspace, policy)
            found = verify(workspace, policy)
            assert found.samples == images
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "stage": stage, "images": images, "peak_mb": _peak_mb(), "peak_when_opened_mb": opened,
        "data_mb": round(images * 3 * SIZE**2 * 4 / 2**20), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    }  # fmt: skip


def _peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def alone(stage: str, count: int) -> dict[str, Any]:
    """Run a stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, str(count)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", type=int, default=[1_000, 10_000])
    parser.add_argument("--stage", choices=(*STAGES, "moments"), help="run this one here, with so many images or MB")
    options = parser.parse_args()
    if options.stage:
        keep_freed_blocks()  # as the command line does
        count = options.images[0]
        print(json.dumps(moments(count or None) if options.stage == "moments" else run(options.stage, count)))
        return 0
    rows = [alone(stage, images) for stage in STAGES for images in options.images]
    rows += [alone("moments", 0), limited := alone("moments", LIMIT_MB)]
    grown = {}
    for stage in STAGES:
        peaks = {row["images"]: row["peak_mb"] for row in rows if row["stage"] == stage}
        grown[stage] = round(peaks[max(peaks)] / peaks[min(peaks)], 3)
    keep("memory", "PYTHONPATH=. python benchmarks/memory.py", [0], rows, bars={"grown": BAR}, grown=grown)
    within = limited["taken_mb"] <= 3 * LIMIT_MB + limited["rounded_weights_mb"]
    return 0 if max(grown.values()) <= BAR and within else 1


if __name__ == "__main__":
    sys.exit(main())
