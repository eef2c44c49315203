"""How far what scores predict of a plan is from its true value, on random plans near each budget of ResNet-20.

Usage: models.py --data CIFAR10_DIR --weights WEIGHTS --parts FILE [--rounding nearest,gptq] [--plans 300] [--seed 0]

FILE holds the scores that methods.py has kept. A random plan is the best within the budget for random importances of
the layers (as the method `random` draws them), so that it uses the budget. The true value is the KL divergence to the
float model on the 512 images that the scores saw, or on --folds of eight parts of them. For each method: the sum of its
values of moves, and where it has pairs, that with those of pairs. `rms` is of the error after its mean is taken away,
`spread` the standard deviation of the true values, `spearman` the rank correlation. `best_of`: the true KL of the plan
that the prediction likes best, `best` that of the best plan there is among them.
"""

import argparse
import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import torch
from ptq_resnet20 import BUDGETS, Bench
from records import keep
from scipy.stats import spearmanr

from calib.tasks import load_task
from smpq.files import ScoresFile
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores
from smpq.solve.allocate import Ceiling, Problem, allocate, worth


def random_plans(bench: Bench, budget: float, count: int, seed: int) -> list[Policy]:
    generator = np.random.default_rng(seed)
    found: dict[str, Policy] = {}
    while len(found) < count:
        drawn = {group: float(generator.exponential()) for group in bench.space.formats}
        values = {g: {f: -drawn[g] * 4.0**-f.weight_bits for f in row} for g, row in bench.space.formats.items()}
        policy = allocate(Problem(bench.space, values, [Ceiling(bench.bits, budget)]))
        if policy is not None:
            found[policy.key()] = policy
    return list(found.values())


def true_values(bench: Bench, plans: list[Policy], folds: int) -> list[float]:
    if folds >= len(bench.folds):
        return bench.value.many(plans)
    parts = [fold.many(plans) for fold in bench.folds[:folds]]
    return [sum(values) / folds for values in zip(*parts, strict=True)]


def compared(true: list[float], predicted: list[float]) -> dict[str, float]:
    ours, theirs = np.array(true), np.array(predicted)
    errors = (theirs - theirs.mean()) - (ours - ours.mean())
    return {
        "spearman": float(spearmanr(ours, theirs).statistic),
        "rms": float(np.sqrt(np.square(errors).mean())),
        "bias": float(theirs.mean() - ours.mean()),
        "spread": float(ours.std()),
        "best_of": float(-ours[theirs.argmax()]),
        "best": float(-ours.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--rounding", default="nearest,gptq")
    parser.add_argument("--plans", type=int, default=300)
    parser.add_argument("--budgets", help="of those of methods.py; all without it")
    parser.add_argument("--folds", type=int, default=8, help="of the eight parts of the images that are true enough")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("cifar10-resnet20", options.data, options.weights)
    known = json.loads(options.parts.read_text())
    rows = []
    for rounding in options.rounding.split(","):
        bench = Bench(task, rounding, options.parts.with_suffix(".sqlite"))
        for budget in map(float, options.budgets.split(",")) if options.budgets else BUDGETS[rounding]:
            plans = random_plans(bench, budget, options.plans, options.seed)
            true = true_values(bench, plans, options.folds)
            for name, found in known.items():
                kind, *place = name.split(" ")
                if kind != "scores" or place[0] != rounding or place[2:] != [str(options.seed), str(budget)]:
                    continue
                scores = Scores.from_file(msgspec.convert(found, ScoresFile), bench.space)
                models = {"alone": scores.alone(), "moves": scores.values()}
                if scores.pairs:
                    models["moves and pairs"] = scores.objective()
                for model, values in models.items():
                    told = compared(true, [worth(values, plan) for plan in plans])
                    rows.append(
                        {
                            "rounding": rounding,
                            "budget": budget,
                            "method": place[1],
                            "model": model,
                            "plans": len(plans),
                            "folds": options.folds,
                        }
                        | told
                    )
                    print(rows[-1], file=sys.stderr, flush=True)
            keep(
                "models",
                "python benchmarks/models.py --data CIFAR10_DIR --weights WEIGHTS --parts FILE "
                f"--plans {options.plans}",
                [options.seed],
                rows,
            )


if __name__ == "__main__":
    main()
