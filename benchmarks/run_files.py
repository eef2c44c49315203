"""Damage every file of a complete run in the ways that its schema suggests: each is refused, equal in effect, or
accepted for a known reason.

Usage: run_files.py [--mutations N]   (of each file; all that there are without it)
"""

import argparse
import faulthandler
import os
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

from records import keep

from deploy.run.schemas import schemas
from tests.run_files.complete import make_run
from tests.run_files.mutations import share
from tests.run_files.trial import ACCEPTED, FAILED, LONGEST_SECONDS, Trials, Verdict

MEMORY = 2**30
"""Bytes on top of what the process takes once the run is open."""
HANGS_SECONDS = 300


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def row(file: str, verdicts: list[Verdict], seconds: float) -> dict:
    return {
        "file": file,
        "mutations": len(verdicts),
        **Counter(verdict.kind for verdict in verdicts),
        "messages": len({verdict.said for verdict in verdicts if verdict.kind == "refused"}),
        "cpu_seconds": round(seconds, 1),
        "accepted_for": dict(Counter(f"{v.mutation.field}: {v.said}" for v in verdicts if v.kind == ACCEPTED)),
        "failures": [f"{verdict.mutation}: {verdict.said}" for verdict in verdicts if verdict.kind == FAILED],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10**6)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as text:
        os.environ["SMPQ_STATE"] = f"{text}/state"
        with make_run(Path(text) / "run") as workspace:
            trials = Trials(workspace)
            limit_memory()
            for file, schema in schemas().items():
                started, verdicts = time.process_time(), []
                for mutation in share(file, (trials.run / file).read_bytes(), schema, options.mutations):
                    faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True)
                    verdicts.append(trials(mutation))
                faulthandler.cancel_dump_traceback_later()
                rows.append(row(file, verdicts, time.process_time() - started))
    total = {
        "mutations": sum(each["mutations"] for each in rows),
        "failed": sum(len(each["failures"]) for each in rows),
    }
    asked = f" --mutations {options.mutations}" if options.mutations < 10**6 else ""
    limits = {"memory_bytes": MEMORY, "cpu_seconds_each": LONGEST_SECONDS}
    keep("run_files", f"PYTHONPATH=. python benchmarks/run_files.py{asked}", [0], rows, **total, limits=limits)


if __name__ == "__main__":
    main()
