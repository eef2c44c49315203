"""The supernet's claim on CIFAR-10 with ResNet-20: do Shapley values rank the widths better than softmax, and choose
better ones?

Usage: supernet_cifar10.py CIFAR10_DIR WEIGHTS [--seeds 0,1,2] [--directory DIRECTORY] and one option for each size

1. A supernet a seed, weights {2,3,4} and activations {4,8} bits in all 20 layers. Shapley values are estimated on
   calibration images.
2. Rank correlation of scores with the drop of top-1 (and the rise of the loss) when one operation is removed and the
   others' shares renormalised; on the first test images, for this analysis alone.
3. Policies by the same allocation from each kind of score: at most 3 weight bits a parameter and at most the bit
   operations of w3a4 everywhere, which is the uniform policy. All are fine-tuned from the same calibrated start with
   equal settings; top-1 on the 10,000 test images.

What is finished is kept in DIRECTORY (and in the record, seed by seed), so that the same command goes on after a kill.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from records import RESULTS, Parts, keep
from scipy import stats

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, Format, formats_from_text
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.tasks import load_task
from smpq.problem.costs import cost_models
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.solve.allocate import Ceiling, Problem, solve_or_explain
from smpq.supernet.game import SupernetGame
from smpq.supernet.network import Supernet, SupernetSubject
from smpq.supernet.scores import shapley_scores, softmax_scores
from smpq.supernet.settings import GameSettings, SupernetSettings
from smpq.supernet.state import SupernetState
from smpq.supernet.training import EpochReport, train
from smpq.training.finetune import Subject, finetune
from smpq.training.settings import FineTuneSettings

NAME = "supernet_cifar10"
FORMATS = "w2a4,w3a4,w4a4,w2a8,w3a8,w4a8"
UNIFORM = Format.from_text("w3a4")
JUDGED = ("metric", "loss")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Bench:
    """The network, calibrated, and its space."""

    def __init__(self, data: Path, weights: Path) -> None:
        self.task = load_task("cifar10-resnet20", data, weights)
        self.batches = list(self.task.calibration())
        example = tuple(tensor[:2] for tensor in self.batches[0].inputs)
        self.model = self.task.model()
        self.traced, self.folded = trace_folded(self.model, example)
        self.units, _ = find_units(self.traced)
        groups = find_groups(self.traced, self.units)
        formats = formats_from_text(FORMATS)
        self.space = Space(groups, {group.name: formats for group in groups}, FP32)
        calibration = Calibration(self.traced, self.units, self.batches, CalibrationSettings())
        self.fake = FakeQuantizer(self.traced, self.units, calibration, QdqRules("affine"))
        self.costs = cost_models(self.space, self.traced)
        self.evaluation = list(self.task.evaluation())
        self.subject = SupernetSubject(
            self.task, self.traced, self.model, self.folded, self.space, calibration, "affine", f"benchmark {FORMATS}"
        )

    def top1(self, fake: FakeQuantizer, policy: dict[str, Format]) -> float:
        edits = fake.edits(fake.plan(policy))
        values = [self.task.metric(fake.traced.run(batch.inputs, edits), batch.target) for batch in self.evaluation]
        return 100 * float(torch.cat(values).mean())

    def allocated(self, scores: dict) -> Policy:
        """The best policy that costs no more than the uniform one, in average weight bits and in bit operations."""
        uniform = self.space.uniform(UNIFORM)
        ceilings = [Ceiling(self.costs[name], self.costs[name].total(uniform)) for name in ("avg_bits", "bops")]
        return solve_or_explain(Problem(self.space, scores, ceilings))

    def tuned_top1(self, policy: Policy, settings: FineTuneSettings) -> tuple[float, float]:
        by_unit = policy.by_unit(self.space.groups)
        plan = self.fake.plan(by_unit)
        before = self.top1(self.fake, by_unit)
        subject = Subject(self.task, self.traced, self.units, self.model, self.folded, plan, policy.key(), "benchmark")
        tuned = finetune(subject, self.batches[:4], settings)
        fake = FakeQuantizer(
            tuned.traced(self.traced), self.units, tuned.calibration(self.fake.calibration), QdqRules("affine")
        )
        return before, self.top1(fake, by_unit)


def removal(bench: Bench, supernet: Supernet, images: int) -> dict[str, list[float]]:
    """By operation: how far top-1 (points) falls and the loss rises on the first test images when it is removed
    alone.
    """
    count = -(-images // len(bench.evaluation[0].target))
    game = SupernetGame(supernet, bench.evaluation[:count], GameSettings(JUDGED))
    coalitions = np.vstack([np.ones(game.players, bool), ~np.eye(game.players, dtype=bool)])
    found = game.measure(coalitions)
    return {"top1": (100 * (found[0] - found[1:])[:, 0]).tolist(), "loss": (found[0] - found[1:])[:, 1].tolist()}


def correlations(supernet: Supernet, state: SupernetState, drops: dict[str, list[float]]) -> dict:
    """Rank correlations over all operations, and over those of each side."""
    shares = supernet.shares()
    softmax = {
        (operation.group, operation.name): share
        for key, row in supernet.rows.items()
        for operation, share in zip(row, shares[key], strict=True)
    }
    kinds = {"softmax": np.array([softmax[operation.group, operation.name] for operation in supernet.operations])}
    for value, found in state.contributions.items():
        kinds[f"shapley {value}"] = found.score
        kinds[f"shapley {value}, plain mean"] = found.mean
    sides = np.array([operation.side for operation in supernet.operations])
    parts = {"pooled": np.ones(len(sides), bool), "weight": sides == "weight", "activation": sides == "activation"}
    rows: dict = {}
    for kind, scores in kinds.items():
        for part, own in parts.items():
            for drop, values in drops.items():
                measured = np.array(values)[own]
                rows.setdefault(kind, {}).setdefault(part, {})[drop] = {
                    "spearman": float(stats.spearmanr(scores[own], measured).statistic),
                    "kendall": float(stats.kendalltau(scores[own], measured).statistic),
                }
    return rows


def one_seed(bench: Bench, settings: SupernetSettings, tuning: FineTuneSettings, images: int, directory: Path) -> dict:
    """Everything about one seed; parts that the directory holds are not made again."""
    path, parts = directory / f"supernet{settings.seed}.safetensors", Parts(directory / f"seed{settings.seed}.json")
    supernet = Supernet(bench.subject)

    def report(progress: EpochReport) -> None:
        cut = "".join(f", {e.truncated} walks cut, {e.evaluations} evaluations" for e in progress.estimates.values())
        say(f"seed {settings.seed}: epoch {progress.epoch} of {progress.epochs}, loss {progress.loss:.4f}{cut}")

    state = train(
        supernet,
        bench.batches,
        settings,
        SupernetState.load(path, supernet) if path.is_file() else None,
        lambda found: found.save(path),
        report,
    )
    state.restore(supernet)
    row: dict = {
        "seed": settings.seed,
        "history": list(state.history),
        "operations": [str(o) for o in supernet.operations],
    }
    row["alphas"] = {f"{group} {side}": shares for (group, side), shares in supernet.shares().items()}
    row["contributions"] = {
        value: {"updates": found.updates, "truncated": found.truncated, "evaluations": found.evaluations,
                "score": found.score.tolist(), "mean": found.mean.tolist()}
        for value, found in state.contributions.items()
    }  # fmt: skip
    row["drops"] = parts("drops", lambda: removal(bench, supernet, images))
    row["correlations"] = correlations(supernet, state, row["drops"])
    say(
        f"seed {settings.seed}: "
        + json.dumps({k: v["pooled"]["top1"]["spearman"] for k, v in row["correlations"].items()})
    )
    scores = {"dmpq": softmax_scores(supernet, state).values(), "smpq": shapley_scores(supernet, state).values()}
    policies = {
        "uniform": bench.space.uniform(UNIFORM),
        **{name: bench.allocated(found) for name, found in scores.items()},
    }
    best = {name: Policy({g: max(row, key=row.get) for g, row in found.items()}) for name, found in scores.items()}
    row["argmax"] = {name: policy.to_file(bench.space.groups).policy for name, policy in best.items()}
    row["policies"] = {}
    for name, policy in policies.items():
        start = time.monotonic()
        before, after = parts(f"top1 {policy.key()}", lambda policy=policy: bench.tuned_top1(policy, tuning))
        say(f"seed {settings.seed}: {name} {before:.2f} to {after:.2f} in {time.monotonic() - start:.0f} s")
        row["policies"][name] = {
            "avg_bits": bench.costs["avg_bits"].total(policy),
            "bops": bench.costs["bops"].total(policy),
            "top1_before": before,
            "top1": after,
            "policy": policy.to_file(bench.space.groups).policy,
        }
    return row


def interval(values: list[float]) -> dict:
    """Mean and Student's 95 % interval over seeds; no interval for one seed."""
    mean, count = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, count - 1) * stats.sem(values)) if count > 1 else None
    return {"mean": mean, "interval": None if half is None else [mean - half, mean + half], "seeds": count}


def summary(rows: list[dict]) -> dict:
    """Figures over seeds: correlations, top-1, and differences between policies of the same seed."""
    found: dict = {"correlations": {}, "top1": {}, "differences": {}}
    for kind, parts in rows[0]["correlations"].items():
        for part, drops in parts.items():
            for drop, measures in drops.items():
                for measure in measures:
                    values = [row["correlations"][kind][part][drop][measure] for row in rows]
                    found["correlations"][f"{kind} | {part} | {drop} | {measure}"] = interval(values)
    tuned = [row for row in rows if row["policies"]]
    names = list(tuned[0]["policies"])
    for name in names:
        found["top1"][name] = interval([row["policies"][name]["top1"] for row in tuned])
    for name in names:
        for other in names[: names.index(name)]:
            apart = [row["policies"][name]["top1"] - row["policies"][other]["top1"] for row in tuned]
            found["differences"][f"{name} - {other}"] = interval(apart)
    return found


def recorded(settings: SupernetSettings, tuning: FineTuneSettings) -> dict | None:
    """Return the row of a seed that the record has, made with the same sizes."""
    file = RESULTS / f"{NAME}.json"
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    same = all(
        {**record[name], "seed": 0} == json.loads(json.dumps({**asdict(wanted), "seed": 0}))
        for name, wanted in (("supernet", settings), ("finetuning", tuning))
    )
    return next(
        (row for row in record["rows"] if same and row["seed"] == settings.seed and len(row["policies"]) == 3), None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--directory", type=Path, default=Path("supernet_cifar10"), help="where unfinished work is kept"
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40, help="batches of 128 an epoch of the supernet")
    parser.add_argument("--walks", type=int, default=6)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--finetune-steps", type=int, default=150)
    parser.add_argument("--finetune-lr", type=float, default=0.005, help="peak learning rate; that of steps is a tenth")
    parser.add_argument("--images", type=int, default=2000, help="test images of the removal analysis")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.data, arguments.weights)
    say("calibrated")
    rows: list[dict] = []
    for seed in map(int, arguments.seeds.split(",")):
        settings = SupernetSettings(
            epochs=arguments.epochs,
            steps=arguments.steps,
            walks=arguments.walks,
            samples=arguments.samples,
            game=GameSettings(JUDGED),
            seed=seed,
        )
        rate = arguments.finetune_lr
        tuning = FineTuneSettings(
            steps=arguments.finetune_steps, learning_rate=rate, step_learning_rate=rate / 10, seed=seed
        )
        known = recorded(settings, tuning)
        rows.append(
            known if known is not None else one_seed(bench, settings, tuning, arguments.images, arguments.directory)
        )
        keep(
            NAME,
            "OMP_NUM_THREADS=1 python benchmarks/supernet_cifar10.py CIFAR10_DIR WEIGHTS "
            + " ".join(
                f"--{n.replace('_', '-')} {v}"
                for n, v in vars(arguments).items()
                if n not in {"data", "weights", "directory"}
            ),
            [row["seed"] for row in rows],
            rows,
            formats=FORMATS,
            equal="at most the average weight bits (over all parameters) and at most the bit operations of w3a4 in "
            "every layer",
            supernet=asdict(settings),
            finetuning=asdict(tuning),
            summary=summary(rows),
        )


if __name__ == "__main__":
    main()
