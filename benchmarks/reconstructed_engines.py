"""Engines of reconstructed plans: what they get right against PyTorch, and which kernels TensorRT-RTX made of them.

Usage: reconstructed_engines.py CIFAR10_DIR WEIGHTS

Each job is `smpq run`, `smpq reconstruct` with few iterations, `smpq export`, `smpq build` and `smpq verify` on all
evaluation images. `points` is the engine's top-1, or on a machine without the target's device that of ONNX Runtime on
the exported graph, minus that of the fake-quantised model, in points, on the images that both ran; the bar is 0.2
either way. `kernels` counts the
kernels that the compiler's plan has for the quantised layers, and `as_planned` those that are what the policy says.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from records import keep

ROOT = Path(__file__).parents[1]
BAR = 0.2


class Job(NamedTuple):
    """What `smpq run` is asked for."""

    task: str
    target: str
    options: tuple[str, ...]


JOBS = (
    Job("cifar10-resnet20", "ort-cpu", ("--formats", "w7a8,fp32", "--budget", "size=0.26x")),
    Job("cifar10-resnet20", "tensorrt-rtx", ("--sm", "sm89", "--formats", "w8a8,fp16", "--budget", "size=0.3x")),
    Job("digits-vit", "ort-cpu", ("--formats", "w4a16b32,w7a8,fp32", "--budget", "size=0.2x")),
    Job("digits-vit", "tensorrt-rtx", ("--sm", "sm89", "--formats", "w4a16b128,w8a8,fp16", "--budget", "size=0.4x")),
)


def made(job: Job, paths: list[str], out: Path) -> dict[str, Any]:
    """Make a run and return its row."""
    where = ["--out", str(out)]
    data = paths if job.task.startswith("cifar10") else []
    before = _spent()
    _smpq("run", "--task", job.task, "--target", job.target, *job.options, "--effort", "fast", *data, *where)
    _smpq("reconstruct", str(out), "--iterations", "100")
    for command in ("export", "build", "verify"):
        _smpq(command, str(out))
    verified, built = (json.loads((out / name).read_text()) for name in ("verify.json", "build.json"))
    stages = verified["stages"]
    last = "engine" if stages["engine"]["mean"] is not None else "onnx"
    policy, *_ = built["policy"].split(" ")  # which fine-tuned weights it has stands behind it
    formats = dict(part.split("=") for part in policy.split(","))
    behind = ("onnx", "engine") if last == "engine" else ("onnx",)
    kernels = {layer: row for layer, row in (built["kernels"] or {}).items() if formats.get(layer, "fp")[0] == "w"}
    return {
        "task": job.task, "target": job.target, "options": " ".join(job.options), "stage": last,
        "formats": Counter(formats.values()), "reconstructed": _changed(out),
        "float": stages["eager"]["mean"], "fake_quant": stages["fake_quant"]["mean"], "top1": stages[last]["mean"],
        "points": round(100 * sum(stages[name]["change"] for name in behind), 3),
        "agreement": verified["stages"][last]["agreement"],
        "kernels": Counter(row["kernel"] for row in kernels.values()),
        "as_planned": sum(row["agrees"] is True for row in kernels.values()),
        "cpu_seconds": round(_spent() - before, 1),
    }  # fmt: skip


def _changed(out: Path) -> dict[str, float]:
    record = json.loads((out / "finetune.json").read_text())
    return {name: record[name] for name in ("before", "after") if name in record}


def _spent() -> float:
    """Return the CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _smpq(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "cli", *arguments], cwd=ROOT, env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("weights")
    options = parser.parse_args()
    paths = ["--data", options.data, "--weights", options.weights]
    rows = []
    for job in JOBS:
        with tempfile.TemporaryDirectory() as directory:
            rows.append(made(job, paths, Path(directory) / "run"))
        command = "python benchmarks/reconstructed_engines.py CIFAR10_DIR WEIGHTS"
        keep("reconstructed_engines", command, [0], rows, bars={"points": BAR})
    return 0 if all(abs(row["points"]) <= BAR for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
