"""The job of the README's first table as a user types it: CPU seconds of all processes, wall time, engine and accuracy.

Usage: headline.py CIFAR10_DIR RESNET20_WEIGHTS [--seeds 0,1,2] [--budget latency=0.65x] [--beside 2]

Each seed is one `smpq run` of ResNet-20 for `ort-cpu` in a new directory, alone, and once more beside `--beside`
processes that compute without a pause. `to_miss` counts engines, designed experiments apart, whose predicted interval
lay above the budget before they were built. `cpu_seconds` leave out worker processes, which a server forks off: rows
beside other processes have some. The bars: at most 100 CPU seconds alone, and beside two processes at most
2.2 times the wall time.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from records import keep

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


def spent() -> float:
    """Return the CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(arguments: argparse.Namespace, seed: int, beside: int) -> dict:
    """Run the job, and read what came of it."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        job = ["run", "--task", "cifar10-resnet20", "--data", str(arguments.data), "--weights", str(arguments.weights),
               "--target", "ort-cpu", "--budget", arguments.budget, "--seed", str(seed), "--out", str(out)]  # fmt: skip
        with busy(beside):
            before, start = spent(), time.perf_counter()
            subprocess.run([sys.executable, "-m", "cli", *job], cwd=ROOT, check=True, capture_output=True)
            wall, cpu = time.perf_counter() - start, spent() - before
        run = Run(out)
        timed, verified, loop = (run.read(kind) for kind in (LatencyFile, VerifyFile, LoopFile))
    steps = [step for search in loop.searches for step in search.steps]
    limit = loop.searches[-1].limit_ratio
    asked = [step for step in steps if step.label != "experiment"]
    return {
        "seed": seed, "beside": beside, "cpu_seconds": round(cpu, 1), "wall_seconds": round(wall, 1),
        "ratio": timed.measurement.ratio,
        "interval": [timed.measurement.ratio_interval.low, timed.measurement.ratio_interval.high],
        "top1": {name: verified.stages[name].mean for name in ("eager", "engine")},
        "searches": len(loop.searches), "engines": len(steps),
        "to_miss": sum(step.predicted_interval.low > limit for step in asked),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", default="latency=0.65x")
    parser.add_argument("--beside", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        for beside in dict.fromkeys((0, arguments.beside)):
            rows.append(row(arguments, seed, beside))
            print(rows[-1], flush=True)
    command = (
        f"python benchmarks/headline.py CIFAR10_DIR WEIGHTS --budget {arguments.budget} --beside {arguments.beside}"
    )
    keep("headline", command, sorted({each["seed"] for each in rows}), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
