"""`smpq run` killed with SIGKILL at random moments and started again, until it ends: what is repeated, and what comes out.

Usage: kill_resume.py [--kills N] [--task TASK]

An undisturbed run of the digits task (target simulate) gives the time, the journal, scores.json and policy.json. Then the same command
is started and killed at a moment drawn from that time, and started again in the same directory; a run that ends before its kill is
compared with the undisturbed one, and the next begins. Every other start has two workers. A row of the journal is never replaced
(a second value of a policy is an error), and its rowid counts the evaluations that finished: rowids 1 to n for n policies say that none
was finished twice.
"""

import argparse
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import keep

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
OPTIONS = ("--target", "simulate", "--formats", "w2a8,w4a8,w8a8", "--rounding", "nearest", "--evaluations", "150", "--samples", "256",
           "--budget", "avg_bits=4", "--seed", "5")  # fmt: skip
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


def killed(process: subprocess.Popen, delay: float) -> bool:
    """Kill after `delay` seconds; False when it had ended by then."""
    try:
        process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return process.returncode == -signal.SIGKILL


def experiment(task: str, kills: int, places: Path) -> tuple[list[dict], list[dict], float]:
    begun = time.monotonic()
    finish(start(task, places / "undisturbed", 1))
    seconds = time.monotonic() - begun
    expected, wanted = hashes(places / "undisturbed"), journal(places / "undisturbed")
    moments, rows, runs, starts = random.Random(SEED), [], [], 0
    while len(rows) < kills:
        run, suffered = places / f"run{len(runs)}", 0
        while True:
            before, workers = len(journal(run)), 1 + starts % 2
            starts += 1
            delay = moments.uniform(0, seconds)
            process = start(task, run, workers)
            if len(rows) == kills:
                finish(process)
                break
            if not killed(process, delay):
                if process.returncode != 0:
                    raise SystemExit(f"{run} ended with {process.returncode}")
                break
            suffered += 1
            rows.append({"run": len(runs), "after_s": delay, "workers": workers, "known_before": before, "known_after": len(journal(run)),
                         "files": sorted(path.name for path in run.glob("*.json")) if run.exists() else []})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
        found = journal(run)
        runs.append({
            "run": len(runs), "kills": suffered, "evaluations": len(found), "evaluations_undisturbed": len(wanted),
            "rowids_are_1_to_n": [row[0] for row in found] == list(range(1, len(found) + 1)),
            "same_values": {row[1:] for row in found} == {row[1:] for row in wanted},
            "same_files": {name: digest == expected[name] for name, digest in hashes(run).items()},
        })  # fmt: skip
        print(runs[-1], file=sys.stderr, flush=True)
    return rows, runs, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--task", default="digits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as places:
        rows, runs, seconds = experiment(options.task, options.kills, Path(places))
    keep(
        "kill_resume",
        f"python benchmarks/kill_resume.py --kills {options.kills} --task {options.task}",
        [SEED],
        rows,
        undisturbed_s=seconds,
        runs=runs,
    )


if __name__ == "__main__":
    main()
