"""`smpq run` killed with SIGKILL at random moments and started again, until it ends: what is repeated, and what comes
out.

Usage: kill_resume.py [--kills N] [--task TASK]

An undisturbed run of the digits task (target simulate) gives the journal, scores.json and policy.json. Then the same
command is killed and started again in the same directory, four times a run, and what comes out is compared. A moment is
drawn uniformly from the evaluations of the undisturbed run, plus up to two seconds; where the run is further already,
uniformly from the first ten seconds. Every other start has two workers. A row of the journal is never replaced (a
second value of a policy is an error), and its rowid counts the evaluations that finished: rowids 1 to n for n policies
say that none was finished twice.
"""

import argparse
import contextlib
import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from records import keep

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
KILLS_A_RUN = 4
OPTIONS = ("--target", "simulate", "--formats", "w2a8,w4a8,w8a8", "--rounding", "nearest", "--evaluations", "150",
           "--samples", "256", "--budget", "avg_bits=4", "--seed", "5")  # fmt: skip
COMPARED = ("scores.json", "policy.json", "contributions.json")


def command(task: str, out: Path, workers: int) -> list[str]:
    return [sys.executable, "-m", "cli", "run", "--task", task, *OPTIONS, "--out", str(out), "--workers", str(workers)]


def journal(run: Path) -> list[tuple]:
    """Rows in the order in which they were written: rowid, fingerprint, policy, value."""
    if not (run / "journal.sqlite").exists():
        return []
    database = sqlite3.connect(run / "journal.sqlite")
    try:
        return database.execute("SELECT rowid, fingerprint, policy, value FROM evaluations ORDER BY rowid").fetchall()
    except sqlite3.OperationalError:  # killed before there was a table
        return []
    finally:
        database.close()


def hashes(run: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in COMPARED}


def start(task: str, out: Path, workers: int) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(task, out, workers), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode}: {errors.decode()}")


def kill(process: subprocess.Popen, run: Path, known: int, delay: float) -> None:
    """Kill `delay` seconds after the journal holds `known` rows."""
    while process.poll() is None and len(journal(run)) < known:
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=delay)
    process.kill()
    process.communicate()


def experiment(task: str, kills: int, places: Path) -> tuple[list[dict], list[dict]]:
    finish(start(task, places / "undisturbed", 1))
    expected, wanted = hashes(places / "undisturbed"), journal(places / "undisturbed")
    moments, rows, runs = random.Random(SEED), [], []
    while len(rows) < kills:
        run = places / f"run{len(runs)}"
        for known in sorted(moments.randrange(len(wanted)) for _ in range(KILLS_A_RUN)):
            before, workers = len(journal(run)), 1 + len(rows) % 2
            delay = moments.uniform(0, 2 if known > before else 10)
            process = start(task, run, workers)
            kill(process, run, known, delay)
            rows.append({"run": len(runs), "workers": workers, "moment": known, "after_s": delay,
                         "ended_by": process.returncode, "rows_before": before, "rows_after": len(journal(run)),
                         "files": sorted(path.name for path in run.glob("*.json")) if run.exists() else [],
                         })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
        finish(start(task, run, 1))
        found = journal(run)
        runs.append({
            "run": len(runs), "evaluations": len(found), "evaluations_undisturbed": len(wanted),
            "rowids_are_1_to_n": [row[0] for row in found] == list(range(1, len(found) + 1)),
            "same_values": {row[1:] for row in found} == {row[1:] for row in wanted},
            "same_files": {name: digest == expected[name] for name, digest in hashes(run).items()},
        })  # fmt: skip
        print(runs[-1], file=sys.stderr, flush=True)
    return rows, runs


def main(name: str, about: str | None, experiment: Callable[[str, int, Path], tuple[list, list[dict]]]) -> None:
    """Run the experiment and keep its record under the name."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--task", default="digits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as places:
        rows, runs = experiment(options.task, options.kills, Path(places))
    keep(name, f"python benchmarks/{name}.py --kills {options.kills} --task {options.task}", [SEED], rows, runs=runs)


if __name__ == "__main__":
    main("kill_resume", __doc__, experiment)
