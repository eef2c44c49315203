"""`smpq reconstruct` killed with SIGKILL at random moments and started again, until it ends: what is repeated, and what
comes out.

Usage: kill_reconstruct.py [--kills N] [--task TASK]

A run of the digits task (target simulate) chooses a policy; an undisturbed `smpq reconstruct` of it gives
finetuned.safetensors. In copies of that run the same command is killed and started again, four times a copy, and what
comes out is compared. A moment is a number of finished blocks, drawn uniformly, and a share of the time of a block;
where the copy is further already, a share of the time of the start and a block. `finished_before` and `finished_after`
are the blocks that reconstruction.safetensors holds, which is gone at the end; the command says each block that it has
trained, and `trained` are those.
"""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from kill_resume import KILLS_A_RUN, ROOT, SEED, main
from safetensors.numpy import load_file

from deploy.files.engine import FinetuneFile
from smpq.reconstruction.partial import PartialFile, read_partial
from smpq.training.finetuned import FineTunedFile

SEARCH = ("--target", "simulate", "--formats", "w2a4,w3a4,w4a8", "--rounding", "nearest", "--evaluations", "40",
          "--samples", "256", "--budget", "avg_bits=3", "--seed", "5")  # fmt: skip
OPTIONS = ("--iterations", "200", "--samples", "512")
SAID = re.compile(rb"block (\d+) of (\d+)")
DIFFERS = {"seconds", "sha256"}
"""What finetune.json says of its own making: the hash is that of a file that holds the seconds too."""


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "cli", *options]


def start(run: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command("reconstruct", str(run), *OPTIONS), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def ended(run: Path) -> bytes:
    """Run the command to its end; returns what it said."""
    process = start(run)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode}: {errors.decode()}")
    return errors


def finished(run: Path) -> int:
    """Count the blocks that a kill leaves."""
    found = read_partial(run / PartialFile.NAME)
    return len(found.costs) if found else 0


def over(run: Path) -> bool:
    """Return whether all was written before the kill: another start would be another reconstruction."""
    return (run / FineTunedFile.NAME).exists() and not (run / PartialFile.NAME).exists()


def said(errors: bytes) -> list[int]:
    return [int(number) for number, _ in SAID.findall(errors)]


def kill(process: subprocess.Popen, run: Path, blocks: int, delay: float) -> bytes:
    """Kill `delay` seconds after so many blocks are done; returns what the command said."""
    while process.poll() is None and finished(run) < blocks:
        time.sleep(0.02)
    try:
        return process.communicate(timeout=delay)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[1]


def result(run: Path) -> tuple[dict[str, bytes], dict]:
    """Return the tensors, and what finetune.json says of anything but its own making."""
    tensors = {name: array.tobytes() for name, array in load_file(run / FineTunedFile.NAME).items()}
    record = json.loads((run / FinetuneFile.NAME).read_text())
    return tensors, {name: value for name, value in record.items() if name not in DIFFERS}


def experiment(task: str, kills: int, places: Path) -> tuple[list[dict], list[dict]]:
    chosen = places / "chosen"
    subprocess.run(
        command("run", "--task", task, *SEARCH, "--out", str(chosen)), cwd=ROOT, check=True, capture_output=True
    )
    whole = shutil.copytree(chosen, places / "undisturbed")
    began = time.monotonic()
    blocks = len(said(ended(whole)))
    seconds, expected = time.monotonic() - began, result(whole)
    moments, rows, runs = random.Random(SEED), [], []
    while len(rows) < kills:
        run, trained = shutil.copytree(chosen, places / f"run{len(runs)}"), []
        for wanted in sorted(moments.randrange(blocks) for _ in range(min(KILLS_A_RUN, kills - len(rows)))):
            before = finished(run)
            delay = moments.uniform(0, seconds / blocks if wanted > before else seconds)
            process = start(run)
            told = said(kill(process, run, wanted, delay))
            trained += told
            rows.append({"run": len(runs), "moment": wanted, "after_s": delay, "ended_by": process.returncode,
                         "finished_before": before, "finished_after": finished(run), "trained": told})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
            if over(run):
                break
        left = finished(run)
        trained += [] if over(run) else said(ended(run))
        tensors, record = result(run)
        runs.append({
            "run": len(runs), "blocks": blocks, "finished_before_the_last_start": left, "trained": trained,
            "none_trained_twice": len(set(trained)) == len(trained),
            "same_tensors": tensors == expected[0], "same_record": record == expected[1],
        })  # fmt: skip
        print(runs[-1], file=sys.stderr, flush=True)
    return rows, runs


if __name__ == "__main__":
    main("kill_reconstruct", __doc__, experiment)
