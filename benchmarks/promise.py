"""3,000 generated networks: each becomes an engine that agrees with its eager module, or is refused with one message.

Usage: PYTHONPATH=. promise.py [COUNT [WORK]]

The networks and the check are those of `tests/promise`, with other seeds than the tests have. Two processes; every
outcome is appended to WORK (`runs/promise.jsonl`), and seeds that are there are not checked again, so that a stopped
benchmark goes on where it was. Failures are in the record with their seeds; the exit code is then 1.
"""

import json
import multiprocessing
import re
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import torch
from records import keep

from tests.promise.networks import generated, recipe_from_seed
from tests.promise.promise import check
from tests.torch_kept import garbage_kept, torch_kept

FIRST_SEED = 1_000_000
COUNT = 3000
PROCESSES = 2


_KEPT = ExitStack()
"""Holds the tables of torch as long as a worker lives; without a reference they would be given up at once."""


def start() -> None:
    """Start a worker."""
    torch.set_num_threads(1)
    _KEPT.enter_context(torch_kept())
    _KEPT.enter_context(garbage_kept())


def checked(seed: int) -> dict:
    recipe = recipe_from_seed(seed)
    network = generated(recipe)
    outcome = check(network)
    return {
        "seed": seed,
        "kind": outcome.kind,
        "stage": outcome.stage,
        "detail": outcome.detail,
        "odd": list(recipe.odd),
        "parts": list(network.parts),
        "cpu_seconds": round(outcome.seconds, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def message_class(detail: str) -> str:
    """A refusal without the names and numbers of the one network."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", detail)
    text = re.sub(r"\bparts\.\S+", "...", text)
    return re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "N", text)[:110]


def known(work: Path) -> dict[int, dict]:
    """The outcomes in a work file; a line that a kill cut off is left out."""
    rows = {}
    for line in work.read_text().splitlines() if work.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["seed"]] = row
    return rows


def complete(count: int, work: Path) -> dict[int, dict]:
    """Check what the work file does not have."""
    rows = known(work)
    seeds = [seed for seed in range(FIRST_SEED, FIRST_SEED + count) if seed not in rows]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context, start) as pool, work.open("a") as file:
        for future in as_completed([pool.submit(checked, seed) for seed in seeds]):
            row = future.result()
            rows[row["seed"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            if row["kind"] not in ("agrees", "refused"):
                print(f"seed {row['seed']}: {row['kind']} at {row['stage']}: {row['detail']}", file=sys.stderr)
            if len(rows) % 50 == 0:
                found = dict(Counter(row["kind"] for row in rows.values()))
                print(f"{time.strftime('%H:%M:%S')} {len(rows)} of {count}: {found}", file=sys.stderr, flush=True)
    return {seed: row for seed, row in rows.items() if FIRST_SEED <= seed < FIRST_SEED + count}


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    work = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/promise.jsonl")
    work.parent.mkdir(parents=True, exist_ok=True)
    rows = list(complete(count, work).values())
    failures = [row for row in rows if row["kind"] not in ("agrees", "refused")]
    outcomes = Counter(("adversarial" if row["odd"] else "ordinary", row["kind"]) for row in rows)
    keep(
        "promise",
        f"PYTHONPATH=. python benchmarks/promise.py {count}",
        [FIRST_SEED, FIRST_SEED + count - 1],
        [{"networks": group, "outcome": kind, "count": number} for (group, kind), number in sorted(outcomes.items())],
        networks=len(rows),
        cpu_seconds=round(sum(row["cpu_seconds"] for row in rows), 1),
        peak_mb=max(row["peak_mb"] for row in rows),
        refusals=dict(Counter(message_class(row["detail"]) for row in rows if row["kind"] == "refused").most_common()),
        adversarial=dict(Counter(f"{name}: {row['kind']}" for row in rows for name in row["odd"]).most_common()),
        parts=dict(Counter(re.sub(r"_\d+$", "", part) for row in rows for part in row["parts"]).most_common()),
        failures=failures,
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
