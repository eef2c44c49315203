"""How far apart ratios of the same engines lie in fresh processes, and whether their intervals say so.

Usage: sessions.py RUN [--sessions 12]

RUN is a run for `ort-cpu`. Each process opens the run's engine, and the float engine twice, and measures them as the
last measurement of a search does. `own` is the float engine against itself, whose ratio is 1; `engine` is the run's
engine. `spread` is the standard deviation of the ratios over processes, `half_width` the mean of their intervals,
`covered` how many of these hold the median of all ratios, of `own` 1. `slowdown` is what other work left in the rounds.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from recheck_engine import session
from records import keep

from deploy.latency.bench import THOROUGH
from deploy.runner.protocol import measure_engines

NAME = "sessions"


class Engine:
    """An engine on fixed inputs, timed by the CPU time of its thread."""

    clock = "thread CPU time"

    def __init__(self, run: Path, name: str) -> None:
        self._session, generator = session(run, name), np.random.default_rng(1)
        shapes = {
            e.name: [size if isinstance(size, int) else 1 for size in e.shape] for e in self._session.get_inputs()
        }
        self._feeds = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def time(self, repeats: int) -> float:
        start = time.thread_time()
        for _ in range(repeats):
            self._session.run(None, self._feeds)
        return 1000 * (time.thread_time() - start) / repeats


def measured(run: Path) -> dict[str, Any]:
    """Measure in this process."""
    report = json.loads((run / "report.json").read_text())
    names = {"float": report["float_engine"], "own": report["float_engine"], "engine": report["engine"]}
    found = measure_engines({key: Engine(run, name) for key, name in names.items()}, "float", THOROUGH)
    return {
        key: {"ratio": each.ratio, "interval": each.ratio_interval, "slowdown": each.slowdown}
        for key, each in found.items()
        if key != "float"
    }


def summary(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = np.array([row[kind]["ratio"] for row in rows])
    ends = np.array([row[kind]["interval"] for row in rows])
    true = 1.0 if kind == "own" else float(np.median(ratios))
    return {
        "engine": kind,
        "sessions": len(rows),
        "median": round(float(np.median(ratios)), 4),
        "spread": round(float(ratios.std(ddof=1)), 4),
        "half_width": round(float((ends[:, 1] - ends[:, 0]).mean() / 2), 4),
        "covered": int(((ends[:, 0] <= true) & (true <= ends[:, 1])).sum()),
        "slowdown": round(float(np.median([row[kind]["slowdown"] for row in rows])), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.run)))
        return 0
    command = [sys.executable, __file__, str(options.run), "--one"]
    rows = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(options.sessions)
    ]
    keep(NAME, f"python benchmarks/{NAME}.py RUN", None, [summary(kind, rows) for kind in ("own", "engine")], each=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
