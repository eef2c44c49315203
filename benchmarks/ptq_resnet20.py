"""Post-training search on ResNet-20: our search against the one-at-a-time KL score with the same solver and the same
weights.

Usage: ptq_resnet20.py CIFAR10_DIR WEIGHTS [--seeds 0,1,2] [--rounding gptq,nearest] [--effort normal] [--journal FILE]

Weights of 2, 3, 4 or 8 bits, activations of 8, every layer counted; top-1 on the 10,000 test images, whose labels the
search never sees. One scoring of a seed serves all its budgets; the seconds of a row hold all of it, the calibration
and the rounding too: `seconds` on the wall, which other processes make longer, `cpu_seconds` of this process, of which
`shared_cpu_seconds` are those of all budgets together. With --journal a run that was stopped repeats no evaluation: its
rows then have too few of them, and too few seconds.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from records import keep

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, formats_from_text
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.task import Task
from calib.tasks import load_task
from smpq.problem.costs import cost_models
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.scoring.shapley import ScoringLimits, estimate
from smpq.scoring.stability import UntilSettled
from smpq.solve.allocate import Ceiling, Problem, solve_or_explain
from smpq.solve.effort import effort_from_name
from smpq.solve.search import choose, confirm
from smpq.value.evaluate import Evaluator
from smpq.value.journal import Journal
from smpq.value.value import PolicyValue

BUDGETS = {"gptq": (2.25, 2.5, 2.75, 3.0), "nearest": (3.0, 3.25, 3.5, 4.0)}
FORMATS = "w2a8,w3a8,w4a8,w8a8"
SAMPLES = 512


class Clock:
    """Seconds on the wall and of this process since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic(), time.process_time()

    def spent(self) -> tuple[float, float]:
        return time.monotonic() - self._start[0], time.process_time() - self._start[1]


class Bench:
    """The network, calibrated and rounded one way."""

    def __init__(self, task: Task, rounding: str, journal: Path) -> None:
        clock = Clock()
        self.task = task
        batches = task.calibration()
        self.original = task.model()
        traced, self.folded = trace_folded(self.original, tuple(t[:2] for t in batches[0].inputs))
        units, _ = find_units(traced)
        groups = find_groups(traced, units)
        formats = formats_from_text(FORMATS)
        self.space = Space(groups, {group.name: tuple(formats) for group in groups}, FP32)
        calibration = Calibration(traced, units, batches, CalibrationSettings(rounding=rounding))
        calibration.prepare(units, {unit.path: formats for unit in units}, lambda: None)
        self.fake = FakeQuantizer(traced, units, calibration, QdqRules("affine"))
        self.costs = cost_models(self.space, traced)
        self.bits = self.costs["avg_bits"]
        seen, unseen = batches[: SAMPLES // 128], batches[SAMPLES // 128 :]
        self.compute = PolicyValue(self.fake, self.space, task, seen)
        self.value = Evaluator(self.compute, Journal(journal), rounding)
        self.folds = self.value.folds
        self.seen = seen
        self.unseen = Evaluator(
            PolicyValue(self.fake, self.space, task, unseen), Journal(journal), f"{rounding} unseen"
        )
        self._top1: dict[str, float] = {}
        self.spent = clock.spent()

    def samples(self) -> int:
        """Return how often a policy was evaluated on a sample."""
        parts = sum(fold.evaluations for fold in self.folds)
        return self.value.evaluations * SAMPLES + parts * (SAMPLES // max(len(self.folds), 1))

    def top1(self, policy: Policy) -> float:
        """Return the accuracy in % on the test images."""
        if policy.key() not in self._top1:
            edits = self.fake.edits(self.fake.plan(policy.by_unit(self.space.groups)))
            right = sum(
                float(self.task.metric(self.fake.traced.run(batch.inputs, edits), batch.target).sum())
                for batch in self.task.evaluation()
            )
            self._top1[policy.key()] = right / 100
        return self._top1[policy.key()]

    def row(self, policy: Policy, **more: object) -> dict:
        """Describe a policy so that anyone can evaluate it again, with its accuracy."""
        return {"top1": self.top1(policy), **self.described(policy, **more)}

    def described(self, policy: Policy, **more: object) -> dict:
        """Describe a policy so that anyone can evaluate it again."""
        return {
            **more,
            "kl": -self.value(policy),
            "kl_unseen": -self.unseen(policy),
            "avg_bits": self.bits.total(policy),
            "policy": {path: str(chosen) for path, chosen in policy.by_unit(self.space.groups).items()},
        }


def search(bench: Bench, rounding: str, seed: int, effort_name: str) -> list[dict]:
    effort = effort_from_name(effort_name)
    rows = []
    clock, known = Clock(), bench.samples()
    budgets = BUDGETS[rounding]
    low, high = min(budgets) * 0.95, max(budgets) * 1.15
    settled = UntilSettled(bench.space, [[Ceiling(bench.bits, budget)] for budget in budgets], effort.gain, seed)
    limits = ScoringLimits(effort.scoring)
    scores = estimate(bench.value, bench.space, limits, seed, (low, high), stop=settled, folds=bench.folds)
    scored, scoring = clock.spent(), bench.samples() - known
    for budget in budgets:
        ceilings = [Ceiling(bench.bits, budget)]
        alone = solve_or_explain(Problem(bench.space, scores.alone(), ceilings))
        rows.append(bench.row(alone, method="one at a time", rounding=rounding, budget=budget, seed=seed))
        clock, known = Clock(), bench.samples()
        starts = {"shapley": scores.values(), "one at a time": scores.alone()}
        choice = choose(bench.value, bench.space, starts, ceilings, effort, folds=bench.folds)
        choice = confirm(choice, bench.value, bench.unseen)
        seconds, cpu_seconds = map(sum, zip(bench.spent, scored, clock.spent(), strict=True))
        rows.append(
            bench.row(
                choice.policy,
                method=f"smpq {effort_name}",
                rounding=rounding,
                budget=budget,
                seed=seed,
                seconds=seconds,
                cpu_seconds=cpu_seconds,
                shared_cpu_seconds=bench.spent[1] + scored[1],
                policies_on_a_sample=scoring + bench.samples() - known,
                walks=scores.permutations,
                path=[[name, -value] for name, value in choice.path],
            )
        )
        for row in rows[-2:]:
            print({k: v for k, v in row.items() if k != "policy"}, file=sys.stderr, flush=True)
    return rows


def summary(rows: list[dict]) -> dict:
    found: dict = {}
    for row in rows:
        found.setdefault(row["rounding"], {}).setdefault(row["method"], {}).setdefault(row["budget"], []).append(
            row["top1"]
        )
    for methods in found.values():
        for method, budgets in methods.items():
            means = {str(budget): sum(values) / len(values) for budget, values in budgets.items()}
            methods[method] = {**means, "mean": sum(means.values()) / len(means)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounding", default="gptq,nearest")
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = load_task("cifar10-resnet20", options.data, options.weights)
    seeds = [int(text) for text in options.seeds.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        for rounding in options.rounding.split(","):
            bench = Bench(task, rounding, options.journal or Path(directory) / "journal.sqlite")
            rows: list[dict] = []
            for seed in seeds:
                for effort in options.effort.split(","):
                    rows += search(bench, rounding, seed, effort)
                keep(
                    "_".join(
                        ["ptq_resnet20", rounding, *options.effort.replace("normal", "").replace(",", "_").split()]
                    ),
                    "python benchmarks/ptq_resnet20.py CIFAR10_DIR WEIGHTS "
                    f"--effort {options.effort} --rounding {rounding}",
                    sorted({row["seed"] for row in rows}),
                    rows,
                    summary=summary(rows),
                    threads=torch.get_num_threads(),
                    resumed=options.journal is not None,
                )


if __name__ == "__main__":
    main()
