"""Every method that needs no training on ResNet-20: what its scores choose, and what the search makes of that.

Usage: methods.py --data CIFAR10_DIR --weights WEIGHTS [--seeds 0,1,2] [--rounding nearest,gptq] [--methods a,b]
       [--searched a,b] [--without-search] [--without-accuracy] [--parts FILE]

Weights of 2, 3, 4 or 8 bits, activations of 8, every layer counted; top-1 on the 10,000 test images with its 95 %
interval. Stage `plan` is the best plan for the scores, stage `searched` what the search near it and the choice on other
samples come to, as smpq run does. A method scores each budget; what it has evaluated for an earlier budget it does not
evaluate again, so its cost is that of its rows together: `cpu_seconds` of this process and `policies_on_a_sample`.
`evaluations` are those of the scores as they count them. `ohq-data-free` is `ohq` with synthetic samples, drawn by its
seed, in place of all calibration data: ranges, rounding, scores, and the KL of its rows. Rows are kept in the file of
--parts as they are made, and a run that was stopped goes on behind them.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import msgspec
import torch
from ptq_resnet20 import BUDGETS, SAMPLES, Bench, Clock
from records import Parts, keep

from calib.files.storage import json_text
from calib.synthetic.batches import synthesize
from calib.synthetic.kinds import kinds_from_example
from calib.synthetic.task import data_free
from calib.task import Batch, Task
from calib.tasks import load_task
from smpq.files import PolicyFile, ScoresFile
from smpq.methods import METHODS, Limits, Method, Need, SearchProblem, method_from_name
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores
from smpq.solve.allocate import Ceiling, Problem, pairs_of
from smpq.solve.effort import EFFORTS
from smpq.solve.quadratic import best_or_explain
from smpq.solve.search import choose, confirm
from smpq.value.evaluate import Evaluator
from smpq.value.value import PolicyValue

IMAGES = 10_000
DATA_FREE = "ohq-data-free"


class Quiet:
    """Who is told how far a method is, and listens to warnings alone."""

    def enough(self) -> bool:
        return False

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, _name: str):
        yield

    @contextmanager
    def bar(self, _name: str, _total: int):
        yield lambda: None


class Player:
    """One method with one seed: its own evaluations, and its scores for each budget."""

    def __init__(self, bench: Bench, rounding: str, name: str, seed: int, parts: Parts) -> None:
        self.bench, self.rounding, self.name, self.seed, self.parts = bench, rounding, name, seed, parts
        self.method: Method = method_from_name("ohq" if name == DATA_FREE else name)
        self.value = Evaluator(PolicyValue(bench.fake, bench.space, bench.task, bench.seen))
        self.scores = cache(self._known)

    def samples(self) -> int:
        parts = sum(fold.evaluations for fold in self.value.folds)
        return self.value.evaluations * SAMPLES + parts * (SAMPLES // max(len(self.value.folds), 1))

    def ceilings(self, budget: float) -> tuple[Ceiling, ...]:
        return (Ceiling(self.bench.bits, budget),)

    def _known(self, budget: float) -> Scores:
        name = f"scores {self.rounding} {self.name} {self.seed} {budget}"
        found = self.parts(name, lambda: json.loads(json_text(self._score(budget).to_file())))
        return Scores.from_file(msgspec.convert(found, ScoresFile), self.bench.space)

    def _score(self, budget: float) -> Scores:
        bench, effort = self.bench, EFFORTS["normal"]
        problem = SearchProblem(
            bench.task, bench.fake.traced, bench.original, bench.folded, bench.space, bench.costs,
            self.ceilings(budget), bench.task.calibration(), bench.seen, "kl", Limits(effort.scoring, 0.0, effort.gain),
            self.seed, "cpu", "", Quiet(), None, lambda: bench.fake, lambda: self.value,
        )  # fmt: skip
        return self.method.score(problem).scores

    def plan(self, budget: float) -> dict:
        clock, known = Clock(), self.samples()
        scores = self.scores(budget)
        scored = clock.spent()[1]
        print(self.name, budget, f"{scored:.1f} s", scores.notes, file=sys.stderr, flush=True)
        said = {}
        if pairs_of(scores.objective()):
            answer = best_or_explain(Problem(self.bench.space, scores.objective(), self.ceilings(budget)))
            policy, said = answer.policy, {"predicted_kl": -answer.value, "gap": answer.gap}
        else:
            policy = self.method.policy(self.bench.space, scores, self.ceilings(budget))
        spent = {"cpu_seconds": clock.spent()[1], "of_which_scoring": scored}
        return self._row(policy, budget, "plan", known, **spent, **said, notes=scores.notes)

    def searched(self, budget: float) -> dict:
        clock, known = Clock(), self.samples()
        scores, effort = self.scores(budget), EFFORTS["normal"]
        space, ceilings = self.bench.space, self.ceilings(budget)
        choice = choose(self.value, space, scores.starts(), ceilings, effort, folds=self.value.folds)
        choice = confirm(choice, self.value, self.bench.unseen)
        path = [[name, -value] for name, value in choice.path]
        spent = {"cpu_seconds": clock.spent()[1]}
        return self._row(choice.policy, budget, "searched", known, **spent, path=path)

    def _row(self, policy: Policy, budget: float, stage: str, known: int, **more: object) -> dict:
        scores = self.scores(budget)
        names = {"rounding": self.rounding, "budget": budget, "method": self.name, "stage": stage}
        names["seed"] = self.seed
        cost = {"evaluations": scores.evaluations, "policies_on_a_sample": self.samples() - known}
        row = self.bench.described(policy, **names, **cost, **more)
        print({k: v for k, v in row.items() if k not in ("policy", "path", "notes")}, file=sys.stderr, flush=True)
        return row


def without_samples(task: Task, seed: int) -> Task:
    """Return the task with synthetic samples, as many again for what the search does not see."""
    made = synthesize(task.model(), kinds_from_example(task.example_inputs()), 2 * SAMPLES, seed)
    images = torch.cat([batch.inputs[0] for batch in made.batches])
    return data_free(task, [Batch((part,), None) for part in images.split(128)])


def _top1(bench: Bench, policy: dict[str, str]) -> float:
    return bench.top1(Policy.from_file(PolicyFile(policy=policy), bench.space))


def with_accuracy(parts: Parts, bench: Callable[[str, str, int], Bench], *, measure: bool) -> list[dict]:
    """Return the rows with the accuracy of their policies,
    those that have none yet without it unless it is measured.
    """
    rows = []
    for row in [row for name, row in parts.all().items() if not name.startswith(("top-1 ", "scores "))]:
        samples = f"{DATA_FREE} {row['seed']} " if row["method"] == DATA_FREE else ""
        name = f"top-1 {row['rounding']} {samples}{sorted(row['policy'].items())}"
        if measure:
            where = row["rounding"], row["method"], row["seed"]
            parts(name, lambda where=where, row=row: _top1(bench(*where), row["policy"]))
        found = parts.all().get(name)
        if found is None:
            rows.append(row)
            continue
        half = 196 * math.sqrt(found / 100 * (1 - found / 100) / IMAGES)
        rows.append({**row, "top1": found, "top1_interval": [found - half, found + half]})
    return rows


def summary(rows: list[dict]) -> dict:
    """Return the mean top-1 by rounding, stage and method over seeds, for each budget and of all, and what it cost."""
    found: dict = {}
    for row in rows:
        table = found.setdefault(row["rounding"], {}).setdefault(row["stage"], {}).setdefault(row["method"], {})
        for name in ("top1", "kl_unseen"):
            if name in row:
                table.setdefault(name, {}).setdefault(str(row["budget"]), []).append(row[name])
        for name in ("cpu_seconds", "policies_on_a_sample"):
            table.setdefault(name, {}).setdefault(row["seed"], []).append(row[name])
    for stages in found.values():
        for methods in stages.values():
            for table in methods.values():
                for name in ("top1", "kl_unseen"):
                    means = {budget: sum(seen) / len(seen) for budget, seen in table.get(name, {}).items()}
                    table[name] = {**means, "mean": sum(means.values()) / len(means)} if means else {}
                table["seeds"] = len(table["cpu_seconds"])
                for name in ("cpu_seconds", "policies_on_a_sample"):
                    table[name] = sum(map(sum, table[name].values())) / table["seeds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounding", default="nearest,gptq")
    untrained = [name for name, each in METHODS.items() if Need.TRAINING_DATA not in each.needs]
    parser.add_argument("--methods", default=",".join([*untrained, DATA_FREE]))
    parser.add_argument("--searched", default=",".join(name for name in untrained if METHODS[name].searched))
    parser.add_argument("--without-search", action="store_true")
    parser.add_argument(
        "--without-accuracy", action="store_true", help="leave it to a later call with the same --parts"
    )
    parser.add_argument("--parts", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("cifar10-resnet20", options.data, options.weights)
    seeds = [int(text) for text in options.seeds.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        parts = Parts(options.parts or Path(directory) / "parts.json")
        journal = Path(directory) / "journal.sqlite"
        with_samples = cache(lambda rounding: Bench(task, rounding, journal))

        @cache
        def without(rounding: str, seed: int) -> Bench:
            return Bench(without_samples(task, seed), rounding, Path(directory) / f"{rounding}{seed}.sqlite")

        def bench(rounding: str, name: str, seed: int) -> Bench:
            return without(rounding, seed) if name == DATA_FREE else with_samples(rounding)

        @cache
        def player(rounding: str, name: str, seed: int) -> Player:
            return Player(bench(rounding, name, seed), rounding, name, seed, parts)

        stages = {"plan": options.methods} | ({} if options.without_search else {"searched": options.searched})
        for seed in seeds:
            for stage, names in stages.items():
                for rounding in options.rounding.split(","):
                    for name in names.split(","):
                        for budget in BUDGETS[rounding]:
                            key = f"{rounding} {name} {seed} {budget} {stage}"

                            def make(rounding=rounding, name=name, seed=seed,  # noqa: ANN001
                                     budget=budget, stage=stage) -> dict:  # noqa: ANN001  # fmt: skip
                                return getattr(player(rounding, name, seed), stage)(budget)

                            parts(key, make)
                rows = with_accuracy(parts, bench, measure=not options.without_accuracy)
                keep(
                    "methods",
                    "python benchmarks/methods.py --data CIFAR10_DIR --weights WEIGHTS",
                    sorted({row["seed"] for row in rows}),
                    rows,
                    summary=summary(rows),
                    threads=1,
                )


if __name__ == "__main__":
    main()
