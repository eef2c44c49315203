"""A budget on the loss, kept on data that had no say: 20 times half of the test images decide, and the other half is
what the engine is judged on.

Usage: drop.py CIFAR10_DIR RESNET20_WEIGHTS [--drop 0.5] [--splits 20]

ResNet-20 on this CPU, calibrated quickly, scored once. Each split searches anew, with ten engines at most; a policy's
metric on all test images and an engine's latency are worked out once. A split is kept when the drop on the evaluation
half is at most the budget and its own standard error. `cpu_seconds` is of this process, all splits together.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from records import keep
from runs import open_network

from calib.data import materialize
from deploy.latency.cheapest import CheapestLoop
from deploy.latency.steps import Goal, LoopSettings
from deploy.run.float_onnx import export_float_model
from deploy.run.opening import call_task
from deploy.run.workspace import Workspace
from deploy.stages.scoring import score
from smpq.problem.policy import Policy
from smpq.value.incremental import outputs_of
from smpq.value.loss import loss_of

ENGINES = 10


class Right:
    """Which test images a policy classifies rightly, `[n]`, worked out once."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._batches = materialize(call_task(workspace.task, "evaluation"), what="evaluation")
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, policy: Policy) -> torch.Tensor:
        if policy.key() not in self.known:
            workspace, fake = self._workspace, self._workspace.fake_quantizer
            edits, parts = [fake.edits(workspace.plan(policy))], []
            for batch in self._batches:
                ((_, output),) = outputs_of(fake.traced, batch.inputs, edits)
                parts.append(workspace.task.metric(output, batch.target))
            self.known[policy.key()] = torch.cat(parts).double()
        return self.known[policy.key()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--drop", type=float, default=0.5)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    start = time.process_time()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        open_network("resnet20", Path(folder) / "run", options.data, options.weights) as workspace,
    ):
        scores, right, measured = score(workspace), Right(workspace), {}
        export_float_model(workspace)
        reference = right(workspace.space.uniform(workspace.space.reference))
        effort = replace(workspace.settings.spending, rounds=1, exchanges=1)

        def observe(policy: Policy) -> object:
            if policy.key() not in measured:
                measured[policy.key()] = workspace.bench.observe(policy)
            return measured[policy.key()]

        for split in range(options.splits):
            order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(split))
            chosen, rest = order[: len(order) // 2], order[len(order) // 2 :]

            def loss(policy: Policy, samples: torch.Tensor) -> object:
                return loss_of(100 * (reference[samples] - right(policy)[samples]), largest=100.0)

            loop = CheapestLoop(
                workspace.space,
                workspace.edges,
                workspace.evaluator,
                Goal(1.0, [], scores.starts(), effort),
                (),
                LoopSettings(ENGINES),
                allowed=lambda policy, chosen=chosen, loss=loss: loss(policy, chosen).within(options.drop),
            )
            outcome = loop.run(observe)
            here, there = loss(outcome.policy, chosen), loss(outcome.policy, rest)
            rows.append(
                {
                    "split": split, "ratio": round(outcome.observation.ratio, 4), "engines": len(outcome.steps),
                    "selection_drop": round(here.mean, 3), "selection_interval": [round(end, 3) for end in here.interval],
                    "evaluation_drop": round(there.mean, 3), "standard_error": round(there.standard_error, 3),
                    "kept": there.mean <= options.drop + there.standard_error,
                    "policy": {name: str(form) for name, form in outcome.policy.formats.items()},
                }
            )  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
        judged = len(right.known)
    keep(
        "drop",
        f"python benchmarks/drop.py CIFAR10_DIR WEIGHTS --drop {options.drop:g} --splits {options.splits}",
        list(range(options.splits)),
        rows,
        kept=f"{sum(row['kept'] for row in rows)} of {len(rows)}",
        policies_judged=judged,
        engines_measured=len(measured),
        cpu_seconds=round(time.process_time() - start, 1),
    )


if __name__ == "__main__":
    main()
