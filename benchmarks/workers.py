"""ResNet-20 evaluated by one worker and by two: evaluations per second, local processes and Ray; and what killed
workers change.

Usage: workers.py CIFAR10_DIR WEIGHTS [--rounds N] [--kills N]

512 images, formats w2a8, w3a8, w4a8, w8a8, target simulate. A round is the policies of one permutation walk from float
to a random policy (80 of them), through the Evaluator of the search. One worker and two, local and Ray, and this
process with one thread take turns, each with the same policies, in another order every round; workers are started
before, and every value is compared. The last seconds of a round, in which a worker may have nothing left to do, count.

Kills: scores of one permutation on 64 images are estimated by two workers, one of which is killed (SIGKILL) at a random
moment.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from incremental import walk
from records import keep

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, formats_from_text
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.task import Batch
from calib.tasks import load_task
from smpq.problem.groups import find_groups
from smpq.problem.policy import Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.scoring.shapley import ScoringLimits, estimate
from smpq.value.evaluate import Evaluator
from smpq.value.value import Compute, PolicyValue
from smpq.value.workers.local import LocalWorkerSource
from smpq.value.workers.pool import WorkerPool
from smpq.value.workers.ray import RayWorkerSource

IMAGES, BATCH, IMAGES_OF_KILLS = 512, 128, 64
SEED = 0


def part(batch: Batch, images: int) -> Batch:
    return Batch((batch.inputs[0][:images],), batch.target[:images])


def timed(computes: dict, space: Space, rounds: int) -> list[dict]:
    rows = []
    generator = np.random.default_rng(SEED)
    names = list(computes)
    for number in range(rounds):
        policies = walk(space, generator)[1:]
        values, row = {}, {"round": number, "policies": len(policies), "load": os.getloadavg()[0]}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            value = Evaluator(computes[name])
            start = time.monotonic()
            values[name] = value.many(policies)
            row[f"{name}_s"] = time.monotonic() - start
            assert value.evaluations == len(policies)
        row["equal"] = all(found == values["here"] for found in values.values())
        for kind in ("local", "ray"):
            row[f"{kind}_ratio"] = row[f"{kind}_1_s"] / row[f"{kind}_2_s"]
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def killed(pools: dict, value: PolicyValue, space: Space, kills: int) -> list[dict]:
    def scores(compute: Compute) -> object:
        return estimate(Evaluator(compute), space, ScoringLimits(evaluations=1), SEED).to_file()

    expected = scores(value)
    moments, rows = random.Random(SEED), []
    for name, pool in pools.items():
        compute = pool.compute(value)
        start = time.monotonic()
        undisturbed = scores(compute) == expected
        seconds = time.monotonic() - start
        for number in range(kills):
            while len(pool.pids()) < pool.count:  # the one that takes the last victim's place is still starting
                list(compute([space.uniform(FP32)]))
            victim, delay = moments.choice(pool.pids()), moments.uniform(0, seconds)
            timer = threading.Timer(delay, os.kill, (victim, signal.SIGKILL))
            timer.start()
            found = scores(compute)
            timer.join()
            list(compute([space.uniform(FP32)]))  # a kill at the very end is noticed by the next evaluation only
            rows.append({"workers": name, "kill": number, "after_s": delay, "undisturbed_s": seconds,
                         "undisturbed_equal": undisturbed, "replaced": victim not in pool.pids(),
                         "scores_equal": found == expected})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--images", type=int, default=IMAGES, help="fewer are a test of this script, and are not recorded"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("cifar10-resnet20", options.data, options.weights)
    batches = [part(batch, options.images) for batch in list(task.calibration())[: max(options.images // BATCH, 1)]]
    traced, _ = trace_folded(task.model(), tuple(t[:2] for t in batches[0].inputs))
    units, _ = find_units(traced)
    groups = find_groups(traced, units)
    formats = formats_from_text("w2a8,w3a8,w4a8,w8a8")
    space = Space(groups, {group.name: (*formats, FP32) for group in groups}, FP32)
    fake = FakeQuantizer(traced, units, Calibration(traced, units, batches, CalibrationSettings()), QdqRules("affine"))
    fake.prepare({unit.path: formats for unit in units})
    here = PolicyValue(fake, space, task, batches)
    cluster = WorkerPool(RayWorkerSource("local", 3))  # three places, for the pools of one and of two
    pools = {"local_1": WorkerPool(LocalWorkerSource(1)), "local_2": WorkerPool(LocalWorkerSource(2)),
             "ray_1": WorkerPool(RayWorkerSource("local", 1)),
             "ray_2": WorkerPool(RayWorkerSource("local", 2))}  # fmt: skip
    computes = {"here": here, **{name: pool.compute(here) for name, pool in pools.items()}}
    first = [space.uniform(formats[0]), *walk(space, np.random.default_rng(SEED + 1))[:12]]
    for name, compute in computes.items():  # start the workers, and let each dequantise its weights
        while True:
            list(compute(first))
            if name == "here" or len(pools[name].pids()) == pools[name].count:
                break
        list(compute(first))
    print("started", file=sys.stderr, flush=True)
    rows = timed(computes, space, options.rounds)
    small = PolicyValue(fake, space, task, [part(batches[0], IMAGES_OF_KILLS)])
    kills = killed({name: pools[name] for name in ("local_2", "ray_2")}, small, space, options.kills)
    for pool in (*pools.values(), cluster):
        pool.close()
    rate = {name: sum(row["policies"] for row in rows) / sum(row[f"{name}_s"] for row in rows) for name in computes}
    ratios = {kind: statistics.median(row[f"{kind}_ratio"] for row in rows) for kind in ("local", "ray")}
    if options.images != IMAGES:
        print(rate, ratios)
        return
    keep(
        "workers",
        f"python benchmarks/workers.py CIFAR10_DIR WEIGHTS --rounds {options.rounds} --kills {options.kills}",
        [SEED], rows,
        evaluations_per_second=rate, median_ratio_of_two_workers_to_one=ratios,
        kills=kills, kills_with_equal_scores=sum(row["scores_equal"] and row["replaced"] for row in kills),
    )  # fmt: skip


if __name__ == "__main__":
    main()
