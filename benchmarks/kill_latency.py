"""`smpq run` with a latency budget, killed with SIGKILL at random moments and started again, until it ends: what is
repeated, and what comes out.

Usage: kill_latency.py [--kills N] [--task TASK]

Times are other ones every time, so two runs may choose other engines. What must not depend on a kill is checked in
three ways:
1. Nothing is lost: what a kill leaves of the journal, of the loop's steps and of the device's results begins what the
   run ends with.
2. Nothing is repeated: every evaluation has one row, every result of the device one key, and a result keeps the times
   it had.
3. The end is what it would have been: a second run is given the device's results of the first one and is not killed. It
   must measure nothing more, and end with the same loop.json and policy.json, byte for byte.
A moment is a number of evaluations, plus up to .3 s, or of steps of the loop, plus up to two seconds, or the end of the
first search, plus up to eight seconds, in which its engine is measured thoroughly and another search may begin; where
the run is further already, up to thirty seconds after its start.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from kill_resume import SEED, finish, journal, main

ROOT = Path(__file__).resolve().parent.parent
KILLS_A_RUN = 4
SEARCHED = 1000
"""In place of a number of steps: the first search has ended."""
OPTIONS = ("--target", "ort-cpu", "--formats", "w8a8,w4a16b32,fp32", "--rounding", "nearest", "--evaluations", "60",
           "--samples", "256", "--seed", "5")  # fmt: skip
BUDGET = ("--budget", "latency=0.8x")


def start(task: str, out: Path, command: str = "run") -> subprocess.Popen:
    arguments = [
        sys.executable,
        "-m",
        "cli",
        command,
        "--task",
        task,
        *OPTIONS,
        *(BUDGET if command == "run" else ()),
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode not in (0, 1):  # a budget that is not met is an end too
        raise SystemExit(f"exit code {process.returncode}: {errors.decode()}")


def steps(run: Path) -> list[dict]:
    with contextlib.suppress(OSError):
        return [step for search in json.loads((run / "loop.json").read_text())["searches"] for step in search["steps"]]
    return []


def ended(run: Path) -> int:
    """How many searches have come to an end."""
    with contextlib.suppress(OSError):
        return sum(search["outcome"] is not None for search in json.loads((run / "loop.json").read_text())["searches"])
    return 0


def results(run: Path) -> list[dict]:
    """What the device has measured, in the order in which it did."""
    return [
        each
        for file in sorted(run.glob("device/*/measurements.json"))
        for each in json.loads(file.read_text())["results"]
    ]


def kill(process: subprocess.Popen, run: Path, evaluations: int, known_steps: int, delay: float) -> None:
    """Kill `delay` seconds after the run has come so far: to the end of a search, to a step, or to an evaluation. Some
    runs need fewer of these: then it is the end of the search, or the first step.
    """
    while process.poll() is None:
        done = len(steps(run))
        if known_steps == SEARCHED:
            reached = ended(run) > 0
        elif known_steps:
            reached = done >= known_steps or ended(run) > 0
        else:
            reached = done > 0 or len(journal(run)) >= evaluations
        if reached:
            break
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=delay)
    process.kill()
    process.communicate()


def moments(generator: random.Random, evaluations: int, count: int) -> list[tuple[int, int]]:
    """One kill of a run falls into the scoring, one into the loop, the others behind the first search; in the order in
    which a run comes to them.
    """
    found = [(generator.randrange(evaluations), 0), (evaluations, generator.randrange(1, count))]
    found += [(evaluations, SEARCHED)] * (KILLS_A_RUN - len(found))
    return sorted(found)


def replayed(task: str, run: Path, place: Path) -> dict:
    """Run again, undisturbed, on a device that answers with what it has measured for `run`."""
    finish(start(task, place, "score"))
    shutil.copytree(run / "device", place / "device", dirs_exist_ok=True)
    before = len(results(place))
    finished(start(task, place))
    return {
        "measured_more": len(results(place)) - before,
        "same_files": {
            name: (run / name).read_bytes() == (place / name).read_bytes()
            for name in ("scores.json", "loop.json", "policy.json")
        },
    }


def experiment(task: str, kills: int, places: Path) -> tuple[list[dict], list[dict]]:
    finished(start(task, places / "undisturbed"))
    evaluations, count = 60, max(len(steps(places / "undisturbed")), 2)
    generator, rows, runs = random.Random(SEED), [], []
    while sum(row["ended_by"] == -signal.SIGKILL for row in rows) < kills:  # a run that has ended by then is not killed
        run, left = places / f"run{len(runs)}", []
        for moment in moments(generator, evaluations, count):
            further = ended(run) > 0 or len(journal(run)) > moment[0] or len(steps(run)) > moment[1] > 0
            delay = generator.uniform(0, 30 if further else 8 if moment[1] == SEARCHED else 2 if moment[1] else 0.3)
            process = start(task, run)
            kill(process, run, *moment, delay)
            left.append((journal(run), steps(run), results(run)))
            rows.append({"run": len(runs), "moment": moment, "after_s": round(delay, 2), "ended_by": process.returncode,
                         "evaluations": len(left[-1][0]), "searched": ended(run), "steps": len(left[-1][1]),
                         "results": len(left[-1][2])})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
        finished(start(task, run))
        end = (journal(run), steps(run), results(run))
        keys = [each["key"] for each in end[2]]
        runs.append({
            "run": len(runs), "evaluations": len(end[0]), "steps": len(end[1]), "results": len(keys),
            "nothing_lost": all(
                then == now[: len(then)] for known in left for then, now in zip(known, end, strict=True)
            ),
            "rowids_are_1_to_n": [row[0] for row in end[0]] == list(range(1, len(end[0]) + 1)),
            "keys_are_different": len(set(keys)) == len(keys),
            "replayed": replayed(task, run, places / f"replay{len(runs)}"),
        })  # fmt: skip
        print(runs[-1], file=sys.stderr, flush=True)
    return rows, runs


if __name__ == "__main__":
    main("kill_latency", __doc__, experiment)
