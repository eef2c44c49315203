"""Pairs of moves on ResNet-20: the time of a pass over them that computes what they share once, against whole runs.

Usage: pairs.py CIFAR10_DIR WEIGHTS [--rows N]

Formats w2a8, w3a8, w4a8, w8a8, nearest rounding, one of eight parts of 512 images. A row is one move with all moves of
later layers, as `smpq.scoring.cross_terms` asks for them; the rows are spread over the network. The two ways take turns
row by row, on one thread, by the clock of this process; values are compared.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from ptq_resnet20 import Bench
from records import keep

from calib.tasks import load_task
from smpq.scoring.cross_terms import all_pairs, moves_from
from smpq.value.evaluate import Evaluator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rows", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        task = load_task("cifar10-resnet20", options.data, options.weights)
        bench = Bench(task, "nearest", Path(directory) / "journal.sqlite")
    compute = bench.compute.fold(0)
    centre = bench.space.uniform(bench.space.reference)
    moves = moves_from(bench.space, centre)
    pairs = all_pairs(moves)
    compute([centre])  # the float model runs once
    rows = []
    for number in range(options.rows):
        first = moves[number * (len(moves) - 4) // options.rows]
        asked = [centre.with_format(*one).with_format(*other) for one, other in pairs if one == first]

        def shared(asked: list = asked) -> list[float]:
            return Evaluator(compute).many(asked)

        def whole(asked: list = asked) -> list[float]:
            return [compute([policy])[0][1] for policy in asked]

        found, seconds = {}, {}
        for way in (shared, whole) if number % 2 else (whole, shared):
            start = time.process_time()
            found[way.__name__] = way()
            seconds[way.__name__] = time.process_time() - start
        difference = max(abs(a - b) for a, b in zip(found["shared"], found["whole"], strict=True))
        rows.append(
            {
                "first": f"{first[0]} {first[1]}",
                "pairs": len(asked),
                **{f"{way}_s": spent for way, spent in seconds.items()},
                "largest_difference": difference,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    total = {way: sum(row[f"{way}_s"] for row in rows) for way in ("shared", "whole")}
    keep(
        "pairs",
        "python benchmarks/pairs.py CIFAR10_DIR WEIGHTS",
        [0],
        rows,
        ratio=total["shared"] / total["whole"],
        pairs=len(pairs),
        largest_difference=max(row["largest_difference"] for row in rows),
    )


if __name__ == "__main__":
    main()
