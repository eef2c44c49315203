"""How well scores predict what plans are worth: additive and pairwise values against true ones, ResNet-20.

Usage: plan_values.py --data CIFAR10_DIR --weights WEIGHTS --parts FILE [--rounding nearest,gptq] [--plans 300]

FILE is that of `methods.py --parts`: the scores of seed 0 come from it, of each method that has some for the budget.
The plans near a budget are the best ones within it for importances of layers that are drawn by lot, so all of them use
the budget up. The true value is minus the mean KL divergence (nats) from the float network on the 512 images that the
scores are of.

Of each method and budget: `additive`, the values of moves alone, and `pairwise`, with those of pairs where there are
some. `spearman` is the rank correlation of predicted and true values over the plans, `error` their mean absolute
difference, `bias` the mean of predicted minus true value, and `regret` the value that is lost by taking the plan which
is predicted to be the best in place of the one that is. CLADO near a plan is judged on all plans, wherever they lie.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import torch
from ptq_resnet20 import BUDGETS, Bench, Clock
from records import Parts, keep

from calib.tasks import load_task
from smpq.files import ScoresFile
from smpq.problem.policy import Policy
from smpq.scoring.ranks import spearman
from smpq.scoring.scores import Scores
from smpq.solve.allocate import Ceiling, Problem, Values, allocate, worth

MOST_DRAWS = 3000


def plans_near(bench: Bench, budget: float, count: int) -> list[Policy]:
    """Return `count` different plans that are the best ones for random importances of layers."""
    generator, space, found = np.random.default_rng(0), bench.space, {}
    for _ in range(MOST_DRAWS):
        values = {
            group.name: {
                chosen: -weight * 4.0**-chosen.weight_bits if chosen != space.reference else 0.0
                for chosen in space.formats[group.name]
            }
            for group, weight in zip(space.groups, generator.exponential(size=len(space.groups)), strict=True)
        }
        policy = allocate(Problem(space, values, [Ceiling(bench.bits, budget)]))
        assert policy is not None
        found[policy.key()] = policy
        if len(found) == count:
            return list(found.values())
    raise SystemExit(f"only {len(found)} different plans near {budget} bits in {MOST_DRAWS} draws")


def compared(values: Values, plans: list[Policy], true: list[float], *, nats: bool) -> dict:
    """Compare predicted and true values of plans; the differences only where both are in nats."""
    predicted, known = np.array([worth(values, plan) for plan in plans]), np.array(true)
    found = {
        "spearman": spearman(predicted.tolist(), true),
        "regret": float(known.max() - known[predicted.argmax()]),
    }
    if nats:
        found |= {"error": float(np.abs(predicted - known).mean()), "bias": float((predicted - known).mean())}
    return found


def scores_of(parts: dict[str, object], bench: Bench, rounding: str, budget: float) -> dict[str, Scores]:
    """Return by method what the parts hold for the budget."""
    found = {}
    for name, part in parts.items():
        if name.startswith(f"scores {rounding} ") and name.endswith(f" 0 {budget}"):
            found[name.split()[2]] = Scores.from_file(msgspec.convert(part, ScoresFile), bench.space)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--rounding", default="nearest,gptq")
    parser.add_argument("--plans", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, clock = load_task("cifar10-resnet20", options.data, options.weights), Clock()
    parts, rows = json.loads(options.parts.read_text()), []
    values = Parts(options.parts.with_suffix(".values.json"))
    for rounding in options.rounding.split(","):
        with tempfile.TemporaryDirectory() as directory:
            bench = Bench(task, rounding, Path(directory) / "journal.sqlite")
        for budget in BUDGETS[rounding]:
            plans = plans_near(bench, budget, options.plans)
            true = values(
                f"{rounding} {budget} {options.plans}",
                lambda bench=bench, plans=plans: [value for _, value in sorted(bench.compute(plans))],
            )
            spread = {"true_best": max(true), "true_mean": float(np.mean(true)), "true_sd": float(np.std(true))}
            for name, scores in scores_of(parts, bench, rounding, budget).items():
                row = {"rounding": rounding, "budget": budget, "method": name, "plans": len(plans), **spread}
                nats = scores.value_name.split()[0] == "kl"  # others are in units of their own
                row["additive"] = compared(scores.values(), plans, true, nats=nats)
                if scores.pairs:
                    row["pairwise"] = compared(scores.objective(), plans, true, nats=nats)
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    keep(
        "plan_values",
        "python benchmarks/plan_values.py --data CIFAR10_DIR --weights WEIGHTS --parts FILE",
        [0],
        rows,
        cpu_seconds=round(clock.spent()[1], 1),
        threads=1,
    )


if __name__ == "__main__":
    main()
