"""The job of the README's first table as a user types it: CPU seconds of all processes, wall time, engine and accuracy.

Usage: headline.py CIFAR10_DIR RESNET20_WEIGHTS [--seeds 0,1,2] [--budget latency=0.65x] [--beside 2]
                   [--before CHECKOUT]

Each seed is one `smpq run` of ResNet-20 for `ort-cpu` in a new directory, alone, and once more beside `--beside`
processes that compute without a pause. `to_miss` counts engines, designed experiments apart, whose predicted interval
lay above the budget before they were built. CPU seconds are of all processes, workers too. With `--before`, another
checkout of the project does the job of the first seed as well; of it only what it takes is kept. The record keeps rows
of other processors, budgets and seeds. The bars: at most 100 CPU seconds alone (a third of the 301 that the job took on
the machine of then), and beside two processes at most 2.2 times the wall time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

from records import RESULTS, cpu_model, keep
from spent import Spent, spent_by

from deploy.files.engine import LatencyFile
from deploy.files.loop import LoopFile
from deploy.files.verification import VerifyFile
from deploy.run.directory import Run

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes at work."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(arguments: argparse.Namespace, seed: int, out: Path, checkout: Path) -> Spent:
    """Run the job with the product of a checkout."""
    job = ["run", "--task", "cifar10-resnet20", "--data", arguments.data, "--weights", arguments.weights,
           "--target", "ort-cpu", "--budget", arguments.budget, "--seed", str(seed), "--out", out]  # fmt: skip
    return spent_by([sys.executable, "-m", "cli", *job], checkout)


def before(arguments: argparse.Namespace, seed: int) -> dict:
    """Run the job with the product as it was."""
    with tempfile.TemporaryDirectory() as directory:
        took = run(arguments, seed, Path(directory) / "run", arguments.before)
    seconds = {"cpu_seconds": round(took.cpu, 1), "wall_seconds": round(took.wall, 1)}
    return {"seed": seed, "beside": 0, "product": "before", **seconds}


def row(arguments: argparse.Namespace, seed: int, beside: int) -> dict:
    """Run the job, and read what came of it."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        with busy(beside):
            took = run(arguments, seed, out, ROOT)
        timed, verified, loop = (Run(out).read(kind) for kind in (LatencyFile, VerifyFile, LoopFile))
    steps = [step for search in loop.searches for step in search.steps]
    limit = loop.searches[-1].limit_ratio
    asked = [step for step in steps if step.label != "experiment"]
    return {
        "seed": seed, "beside": beside, "product": "this",
        "cpu_seconds": round(took.cpu, 1), "wall_seconds": round(took.wall, 1),
        "ratio": timed.measurement.ratio,
        "interval": [timed.measurement.ratio_interval.low, timed.measurement.ratio_interval.high],
        "top1": {name: verified.stages[name].mean for name in ("eager", "engine")},
        "searches": len(loop.searches), "engines": len(steps),
        "to_miss": sum(step.predicted_interval.low > limit for step in asked),
    }  # fmt: skip


def record(arguments: argparse.Namespace, found: dict) -> None:
    """Put a row into the record, in the place of one of the same kind."""
    path = RESULTS / "headline.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    kind = itemgetter("cpu", "budget", "seed", "beside", "product")
    new = {"cpu": cpu_model(), "budget": arguments.budget, **found}
    rows = sorted([*(each for each in known if kind(each) != kind(new)), new], key=kind)
    command = "python benchmarks/headline.py CIFAR10_DIR WEIGHTS --budget latency=0.65x --beside 2"
    keep("headline", command, sorted({each["seed"] for each in rows}), rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", default="latency=0.65x")
    parser.add_argument("--beside", type=int, default=2)
    parser.add_argument("--before", type=Path, help="a checkout of the project as it was")
    arguments = parser.parse_args()
    arguments.data, arguments.weights = arguments.data.absolute(), arguments.weights.absolute()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    for seed in seeds:
        for beside in dict.fromkeys((0, arguments.beside)):
            record(arguments, row(arguments, seed, beside))
        if arguments.before is not None and seed == seeds[0]:
            record(arguments, before(arguments, seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
