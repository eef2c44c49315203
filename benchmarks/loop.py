"""The closed loop on this CPU: five budgets a network, at most ten engines each, measured again without the tool,
against 30 random plans.

Usage: loop.py CIFAR10_DIR RESNET20_WEIGHTS [--networks resnet20,resnet18,vit_tiny] [--random 30]

The networks of latency_model.py. Budgets lie evenly between the fastest engine that a search without value finds and
the float engine. Each budget's loop starts from nothing but the scores, which one scoring gives for all. What it hands
over is timed again in plain onnxruntime: the upper end of the 95 % interval may be 1.02 times the budget. Networks that
are not asked for keep their rows in the record. Random plans are drawn around the fastest and the float plan until
enough are measured to meet the budget; none may have a better value than the loop's (on the calibration images, which
is what the loop searches by).
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
from recheck_engine import best_of
from records import RESULTS, keep
from runs import NETWORKS, open_network

from deploy.devices.base import Candidate
from deploy.latency.bench import THOROUGH
from deploy.latency.loop import LatencyLoop
from deploy.latency.observed import Observation, observation_of
from deploy.latency.steps import Goal, LoopSettings, Outcome, Step
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import Workspace
from deploy.runner.protocol import Protocol
from deploy.stages.scoring import score
from smpq.problem.policy import Policy, Space

BUDGETS, BUILDS, ROUNDS, MOST_DRAWS = 5, 10, 51, 120


def session(candidate: Candidate) -> ort.InferenceSession:
    """Open an engine in plain onnxruntime, with the settings that belong to it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, candidate.settings["graph_optimization_level"]
    )
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for key, value in candidate.settings["session_config"].items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(
        str(candidate.model),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=candidate.settings["disabled_optimizers"],
    )


def remeasure(workspace: Workspace, policy: Policy) -> tuple[float, float, float]:
    """Return the median ratio to the float engine and its bootstrap interval: interleaved, CPU clock, one thread."""
    candidates = workspace.candidates.candidate(policy), workspace.candidates.float_candidate(1)
    inputs = workspace.bench.experiment(candidates[:1], Protocol()).inputs
    engine, baseline = map(session, candidates)
    ratios = np.array([best_of(engine, inputs) / best_of(baseline, inputs) for _ in range(ROUNDS)])
    picks = np.random.default_rng(0).integers(0, ROUNDS, (2000, ROUNDS))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def loop(workspace: Workspace, limit: float, starts: dict, seed: int) -> Outcome:
    """Search as `smpq run` does: what the loop hands over is measured thoroughly, and searched on where that overrules
    it.
    """
    effort = replace(workspace.settings.spending, rounds=1, exchanges=1)
    known: dict[str, Observation] = {}
    steps: list[Step] = []
    while True:
        goal = Goal(limit, [], starts, effort)
        settings = LoopSettings(BUILDS - len(steps), seed=seed)
        looped = LatencyLoop(
            workspace.space, workspace.edges, workspace.evaluator, goal, list(known.values()), settings
        )
        outcome = looped.run(lambda policy: workspace.bench.observe(policy, limit))
        steps += outcome.steps
        known |= {step.observation.policy.key(): step.observation for step in outcome.steps if step.observation}
        policy = outcome.policy
        if not outcome.met or policy == workspace.space.uniform(workspace.space.reference):
            break
        (result,) = workspace.bench.time([workspace.candidates.candidate(policy)], THOROUGH)
        known[policy.key()] = observation_of(policy, result)
        if known[policy.key()].upper <= limit:
            break
    return replace(outcome, steps=tuple(steps))


def near(space: Space, fastest: Policy, most: float, generator: np.random.Generator) -> Policy:
    """Draw a plan: each group as in the fastest plan, or any format, with a probability of up to `most` that is drawn
    each time.
    """
    loose = most * generator.random()
    picks = {
        name: space.formats[name][generator.integers(len(space.formats[name]))]
        if generator.random() < loose
        else chosen
        for name, chosen in fastest.formats.items()
    }
    return Policy(picks, fastest.float_joins)


def rows_of(name: str, directory: Path, options: argparse.Namespace) -> list[dict]:
    rows = []
    with open_network(name, directory / name, options.data, options.weights) as workspace:
        start = time.process_time()
        scores = score(workspace)
        export_float_model(workspace)
        bench, value = workspace.bench, workspace.evaluator
        print(f"{name}: scored in {time.process_time() - start:.0f} CPU s", file=sys.stderr, flush=True)
        known = {}
        fastest = loop(workspace, 1e-3, scores.starts(), seed=99)
        known |= {step.observation.policy.key(): step.observation for step in fastest.steps if step.observation}
        lowest = fastest.observation.ratio
        for number in range(1, BUDGETS + 1):
            limit = lowest + (1 - lowest) * number / (BUDGETS + 1)
            start = time.process_time()
            outcome = loop(workspace, limit, scores.starts(), seed=number)
            seconds = time.process_time() - start
            known |= {step.observation.policy.key(): step.observation for step in outcome.steps if step.observation}
            ratio, low, high = remeasure(workspace, outcome.policy)
            generator = np.random.default_rng(number)
            met, draws = {}, 0
            while len(met) < options.random and draws < MOST_DRAWS:
                draws += 1
                policy = near(workspace.space, fastest.policy, 1.5 * number / (BUDGETS + 1), generator)
                observation = known.get(policy.key()) or bench.observe(policy)
                known[policy.key()] = observation
                if observation.upper <= limit:
                    met[policy.key()] = policy
            values = value.many([policy for key, policy in met.items() if key != outcome.policy.key()])
            rows.append(
                {
                    "network": name,
                    "budget": limit,
                    "met": outcome.met,
                    "builds": len(outcome.steps),
                    "stop_reason": outcome.stop_reason,
                    "loop_ratio": outcome.observation.ratio,
                    "ratio": ratio,
                    "interval": [low, high],
                    "upper_over_budget": high / limit,
                    "value": outcome.value,
                    "random_plans": len(values),
                    "random_drawn": draws,
                    "best_random_value": max(values, default=None),
                    "random_better": sum(found > outcome.value for found in values),
                    "loop_cpu_seconds": seconds,
                    "policy": {group: str(chosen) for group, chosen in outcome.policy.formats.items()},
                    "float_joins": sorted(outcome.policy.float_joins),
                    "steps": [
                        [step.proposal.label, step.proposal.predicted, step.observation and step.observation.ratio]
                        for step in outcome.steps
                    ],
                }
            )
            shown = {key: entry for key, entry in rows[-1].items() if key not in ("policy", "steps", "float_joins")}
            print(json.dumps(shown), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--random", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = [row for name in options.networks.split(",") for row in rows_of(name, Path(directory), options)]
    file = RESULTS / "loop.json"
    known = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = [*(row for row in known if row["network"] not in options.networks.split(",")), *rows]
    summary = {
        "cases": len(rows),
        "within_1.02": sum(row["upper_over_budget"] <= 1.02 for row in rows),
        "nothing_random_better": sum(row["random_better"] == 0 for row in rows),
        "most_builds": max(row["builds"] for row in rows),
    }
    keep("loop", "python benchmarks/loop.py CIFAR10_DIR RESNET20_WEIGHTS", [0], rows, summary=summary)


if __name__ == "__main__":
    main()
