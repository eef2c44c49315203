"""A budget on the loss, kept on data that had no say: 20 times half of the test images decide, and the other half is
what the engine is judged on.

Usage: drop.py CIFAR10_DIR RESNET20_WEIGHTS [--coco FOLDER] [--networks resnet20,digits-vit,fastestdet]
       [--drop 0.5] [--splits 20] [--random 60] [--handmade 10] [--images 10000] [--keep DIRECTORY]

Networks on this CPU, calibrated quickly, scored once. The test images are the evaluation data of the task, the first
`--images` of them, for FastestDet two thirds of its 128 images; the rest calibrates. Each split searches anew, with
ten engines at most. Policies and engines are judged and measured once. Images are looked at in order, and no further
where a policy's loss, less 3 standard errors, leaves no room for the interval of a half within the budget.

A split is kept when the drop on the evaluation half is at most the budget and its own standard error. `behind` compares
the engine with the fastest of the random and hand-made plans that the same rule allows on the selection half, each
measured once, as the loop measures: the ratio of their latencies less 1. Plans are judged from the fastest on, and only
while some split whose engine is slower has allowed none; where none is faster, `behind` is 0. A half of the random
plans is scattered, a quarter each drawn around the fastest engine that the first split measured and around the one it
chose. `behind_again` is the same with both measured again and thoroughly: the fastest of many single measurements owes
something to their noise. Networks that are not asked for keep their rows in the record. With `--keep` another call
works nothing out again.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from measured_engines import Engines
from plans import handmade_plans, random_plans
from records import RESULTS, keep
from runs import open_network
from safetensors.torch import load_file, save_file

from calib.data import call_task, each_batch
from calib.task import Batch
from deploy.latency.cheapest import CheapestLoop
from deploy.latency.observed import Observation
from deploy.latency.steps import Goal, LoopSettings, Outcome
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import Workspace
from deploy.stages.scoring import score
from deploy.targets.offers import may_fail
from smpq.files import SHARES
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores
from smpq.value.incremental import outputs_of
from smpq.value.loss import Loss, loss_of, stated_point

NETWORKS = ("resnet20", "digits-vit", "fastestdet")
ENGINES, CLEARLY, FEWEST = 10, 3.0, 1000


class Test:
    """What policies lose on the test images, in points, `[n]`, each worked out once."""

    def __init__(self, workspace: Workspace, limit: float, file: Path, most: int) -> None:
        self._workspace, self._limit, self._file = workspace, limit, file
        self._batches = list[Batch]()
        for batch in each_batch(call_task(workspace.task, "evaluation"), "evaluation"):
            self._batches.append(batch)
            if sum(len(each.inputs[0]) for each in self._batches) >= most:
                break
        self._point = stated_point(workspace.task) or 1.0
        self._largest = 1 / self._point if workspace.task.metric_name in SHARES else 0.0
        self._known: dict[str, torch.Tensor] = load_file(file) if file.is_file() else {}
        self.asked: set[str] = set()
        self._float = self._metrics(workspace.space.uniform(workspace.space.reference), early=False)
        self.images = sum(map(len, self._float))
        self._known = {key: lost[: self.images] for key, lost in self._known.items()}

    @property
    def metric(self) -> float:
        return float(torch.cat(self._float).mean()) / self._point

    def loss(self, policy: Policy, samples: torch.Tensor | None = None) -> Loss:
        """Return the loss on some of the test images, or on all that were looked at."""
        lost = self._lost(policy)
        if samples is None or len(lost) < self.images:
            return loss_of(lost, self._largest, complete=len(lost) == self.images)
        return loss_of(lost[samples], self._largest)

    def allows(self, policy: Policy, samples: torch.Tensor) -> bool:
        found = self.loss(policy, samples)
        return found.complete and found.within(self._limit)

    def _lost(self, policy: Policy) -> torch.Tensor:
        self.asked.add(policy.key())
        if policy.key() not in self._known:
            values = self._metrics(policy, early=True)
            pairs = zip(self._float, values, strict=False)
            self._known[policy.key()] = torch.cat([(before - after) / self._point for before, after in pairs])
            save_file(self._known, self._file)
        return self._known[policy.key()]

    def _metrics(self, policy: Policy, *, early: bool) -> list[torch.Tensor]:
        workspace, fake, parts, seen = self._workspace, self._workspace.fake_quantizer, [], 0
        edits = [fake.edits(workspace.plan(policy))]
        for batch in self._batches:
            ((_, output),) = outputs_of(fake.traced, batch.inputs, edits)
            parts.append(workspace.task.metric(output, batch.target).double())
            seen += len(parts[-1])
            if early and seen >= FEWEST:
                lost = [(b - a) / self._point for b, a in zip(self._float, parts, strict=False)]
                found = loss_of(torch.cat(lost), self._largest)
                of_half = found.standard_error * (2 * seen / self.images) ** 0.5
                if found.mean - CLEARLY * found.standard_error + 1.96 * of_half > self._limit:
                    break
        return parts


def halves(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2], order[count // 2 :]


def search(workspace: Workspace, scores: Scores, test: Test, engines: Engines, chosen: torch.Tensor) -> Outcome:
    """Search as `smpq run` does."""
    effort = replace(workspace.settings.spending, rounds=1, exchanges=1)
    loop = CheapestLoop(
        workspace.space,
        workspace.edges,
        workspace.evaluator,
        Goal(1.0, [], scores.starts(), effort, workspace.evaluator.folds),
        (),
        LoopSettings(ENGINES),
        doubtful=may_fail(workspace.target, workspace.space, workspace.settings.batch),
        allowed=lambda policy: test.allows(policy, samples=chosen),
    )
    return loop.run(engines.observe)


def split_row(outcome: Outcome, test: Test, split: int, limit: float) -> dict:
    chosen, rest = halves(test.images, split)
    here, there = test.loss(outcome.policy, chosen), test.loss(outcome.policy, rest)
    return {
        "split": split, "ratio": round(outcome.observation.ratio, 4), "engines": len(outcome.steps),
        "selection_drop": round(here.mean, 3), "selection_interval": [round(end, 3) for end in here.interval],
        "evaluation_drop": round(there.mean, 3), "standard_error": round(there.standard_error, 3),
        "kept": there.mean <= limit + there.standard_error,
        "stop_reason": outcome.stop_reason,
        **text_of(outcome.policy),
    }  # fmt: skip


def integer_formats(workspace: Workspace, engines: Engines) -> list:
    """Return the formats besides float, the one whose uniform engine is fastest first."""
    space = workspace.space
    found = {each: None for row in space.formats.values() for each in row if each != space.reference}
    measured = {each: engines.observe(space.uniform(each)) for each in found}
    return sorted(found, key=lambda each: getattr(measured[each], "ratio", float("inf")))


def plan_rows(plans: dict[str, Policy], test: Test, engines: Engines, splits: list[dict]) -> list[dict]:
    """Time all plans, and judge them from the fastest on, as long as one may be faster than what a split has."""
    observed = {name: engines.observe(policy) for name, policy in plans.items()}
    ratios = {name: found.ratio for name, found in observed.items() if isinstance(found, Observation)}
    rows = [{"name": name, "ratio": None, **text_of(plans[name])} for name in plans if name not in ratios]
    to_beat = {row["split"]: row["ratio"] for row in splits}
    for name, ratio in sorted(ratios.items(), key=lambda pair: pair[1]):
        rows.append({"name": name, "ratio": round(ratio, 4), **text_of(plans[name])})
        if ratio >= max(to_beat.values(), default=0.0):
            continue
        allowed = [split for split in to_beat if test.allows(plans[name], halves(test.images, split)[0])]
        loss = test.loss(plans[name])
        rows[-1] |= {
            "drop": round(loss.mean, 3), "standard_error": round(loss.standard_error, 3), "images": loss.samples,
            "allowed_in": allowed,
        }  # fmt: skip
        to_beat = {split: best for split, best in to_beat.items() if split not in allowed}
        tell(rows[-1])
    return rows


def text_of(policy: Policy) -> dict:
    """Return what is not in float, and which joins are."""
    formats = {name: str(form) for name, form in policy.formats.items() if str(form) != "fp32"}
    return {"policy": formats, "float_joins": sorted(policy.float_joins)}


def compare(row: dict, policy: Policy, plans: dict[str, Policy], judged: list[dict], engines: Engines) -> None:
    """Add the fastest plan that the split allows, where that is faster than the engine."""
    rivals = [each for each in judged if row["split"] in each.get("allowed_in", []) and each["ratio"] < row["ratio"]]
    rival = min(rivals, key=lambda each: each["ratio"], default=None)
    row |= {"rival": None, "behind": 0.0, "behind_again": 0.0}
    if rival is not None:
        again = engines.again(policy) / engines.again(plans[rival["name"]]) - 1
        behind = row["ratio"] / rival["ratio"] - 1
        row |= {"rival": rival["name"], "behind": round(behind, 4), "behind_again": round(again, 4)}


def network_row(name: str, directory: Path, options: argparse.Namespace) -> dict:
    start = time.process_time()
    data = options.coco if name == "fastestdet" else options.data
    with open_network(name, directory / name, data, options.weights) as workspace:
        scores = score(workspace)
        export_float_model(workspace)
        test = Test(workspace, options.drop, directory / f"{name}.safetensors", options.images)
        engines = Engines(workspace, directory / f"{name}.json")
        say(f"{name}: float {test.metric:.2f} on {test.images} images, {time.process_time() - start:.0f} CPU s")
        outcomes, rows = [], []
        for split in range(options.splits):
            outcomes.append(search(workspace, scores, test, engines, halves(test.images, split)[0]))
            rows.append(split_row(outcomes[-1], test, split, options.drop))
            tell(rows[-1])
            say(f"{len(test.asked)} policies judged, {time.process_time() - start:.0f} CPU s")
        searched, measured = len(test.asked), len(engines.known)
        centres = [engines.fastest(), outcomes[0].policy]
        plans = random_plans(workspace.space, options.random, centres)
        ours = {outcome.policy.key() for outcome in outcomes}
        plans |= handmade_plans(workspace.space, integer_formats(workspace, engines), options.handmade)
        plans = {plan: policy for plan, policy in plans.items() if policy.key() not in ours}
        judged = plan_rows(plans, test, engines, rows)
        for row, outcome in zip(rows, outcomes, strict=True):
            compare(row, outcome.policy, plans, judged, engines)
        return {
            "network": name, "metric": workspace.task.metric_name, "float": round(test.metric, 2),
            "images": test.images,
            "kept": sum(row["kept"] for row in rows),
            "float_engine_chosen": sum(row["ratio"] == 1 for row in rows),
            "within_3_percent": sum(row["behind"] <= 0.03 for row in rows),
            "within_3_percent_again": sum(row["behind_again"] <= 0.03 for row in rows),
            "policies_judged": searched, "engines_measured": measured,
            "cpu_seconds": round(time.process_time() - start, 1),
            "splits": rows, "plans": judged,
        }  # fmt: skip


say = partial(print, file=sys.stderr, flush=True)


def tell(row: dict) -> None:
    say({key: entry for key, entry in row.items() if key not in ("policy", "float_joins")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--drop", type=float, default=0.5)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--random", type=int, default=60)
    parser.add_argument("--handmade", type=int, default=10)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    file = RESULTS / "drop.json"
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as directory:
            row = network_row(name, options.keep or Path(directory), options)
        known = json.loads(file.read_text())["rows"] if file.is_file() else []
        rows = {each["network"]: each for each in [*known, row]}
        keep(
            "drop",
            f"python benchmarks/drop.py CIFAR10_DIR WEIGHTS --coco FOLDER --drop {options.drop:g} --splits "
            f"{options.splits} --random {options.random} --handmade {options.handmade} --images {options.images}",
            list(range(options.splits)),
            [rows[each] for each in NETWORKS if each in rows],
        )


if __name__ == "__main__":
    main()
