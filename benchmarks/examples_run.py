"""The examples, as a user types them: `smpq run` on this CPU, and what the engine loses of the user's own metric.

Usage: examples_run.py REAL [NAME ...] [--runs DIRECTORY]

REAL is a folder with the examples' data and weights; their docstrings say which files. Each is one process on one
thread. FastestDet is asked for 0.75 of float's latency. DnCNN is asked for what no engine reaches, `latency=0.1x`: the
fastest one found is handed over, with exit code 1. A pass over its evaluation data is 1,500 billion multiplications, so
policies are judged by 8 tiles, and little is searched. Llama is asked for 0.3 of float's size, and judged by 8 texts:
with the defaults `smpq run` announces up to 14 minutes.
A directory that holds a run must be removed before: a run that goes on would not have cost what it did. With NAMEs only
those run, and the others keep their rows in the record.

`ratio` is the engine's time by float's, `change` the paired change of the metric from float to engine, both with a 95 %
interval; `loses_at_most` is the bar for the loss, in the metric's unit, which is higher for better.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from records import RESULTS, keep

ROOT = Path(__file__).parents[1]
FLOAT, ENGINE = "eager", "engine"


class Job(NamedTuple):
    """A command, and how much of the metric the engine may lose."""

    task: str
    weights: str
    options: tuple[str, ...]
    loses_at_most: float


JOBS = {
    "fastestdet": Job("examples.detection:task", "fastestdet.safetensors", ("--budget", "latency=0.75x"), 0.5),
    "dncnn": Job(
        "examples.denoising:task",
        "dncnn25.safetensors",
        ("--budget", "latency=0.1x", "--effort", "fast", "--samples", "8"),
        0.1,
    ),
    "llama": Job(
        "examples.language:task",
        "stories260k.safetensors",
        ("--budget", "size=0.3x", "--effort", "fast", "--samples", "8"),
        0.02,
    ),
}


def taken(name: str, real: Path, runs: Path) -> dict[str, Any]:
    """Run a job and return its row."""
    job, out = JOBS[name], runs / name
    if out.exists():
        raise SystemExit(f"{out} is there: remove it, for a run that goes on costs less than it did")
    options = ["--task", job.task, "--data", "REAL", "--weights", f"REAL/{job.weights}", *job.options]
    given = [each.replace("REAL", str(real)) for each in options]
    command = [sys.executable, "-m", "cli", "run", *given, "--out", str(out), "--json"]
    start, before = time.monotonic(), os.times()
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=one_thread, check=False, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    row = {
        "network": name,
        "command": " ".join(["smpq run", *options]),
        "exit_code": ended.returncode,
        "cpu_seconds": round(spent, 1),
        "wall_seconds": round(time.monotonic() - start, 1),
    }
    report = out / "report.json"
    return {**row, **(found_in(json.loads(report.read_text()), job) if report.is_file() else {"holds": False})}


def found_in(report: dict[str, Any], job: Job) -> dict[str, Any]:
    """Return what a report says of the engine."""
    verified, stages = report["verification"], report["verification"]["stages"]
    change, timed = verified["whole"]["change"], report["latency"]
    formats = list(report["policy"].values())
    return {
        "budget_met": report["met"],
        "ratio": timed and timed["ratio"],
        "ratio_interval": timed and timed["interval"],
        "size": round(report["size_bytes"] / report["float_size_bytes"], 3),
        "formats": {each: formats.count(each) for each in dict.fromkeys(formats)},
        "metric": verified["metric"],
        "float": stages[FLOAT]["mean"],
        "engine": stages[ENGINE]["mean"],
        "engine_interval": stages[ENGINE]["interval"],
        "change": change,
        "change_interval": verified["whole"]["interval"],
        "samples": verified["samples"],
        "seconds": report["seconds"],
        "loses_at_most": job.loses_at_most,
        "holds": -change <= job.loses_at_most,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path)
    parser.add_argument("names", nargs="*", choices=[*JOBS, []])
    parser.add_argument("--runs", type=Path, default=Path("runs/examples"))
    options = parser.parse_args()
    kept = RESULTS / "examples.json"
    rows = {row["network"]: row for row in json.loads(kept.read_text())["rows"]} if kept.is_file() else {}
    for name in options.names or JOBS:
        rows[name] = taken(name, options.real.resolve(), options.runs.resolve())
        print(json.dumps(rows[name]), file=sys.stderr, flush=True)
    ordered = [rows[name] for name in JOBS if name in rows]
    keep("examples", "PYTHONPATH=. python benchmarks/examples_run.py REAL", [0], ordered)
    return 0 if all(row["holds"] for row in ordered) else 1


if __name__ == "__main__":
    sys.exit(main())
