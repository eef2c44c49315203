"""The closed loop on made-up networks, whose best policy is known: value lost, engines, evaluations.

Usage: PYTHONPATH=. python benchmarks/made_up_loops.py [--networks 10] [--layers 9]

A network is a chain of layers with three formats each. Values have parts for layers and for neighbours that are both
quantised, latencies for layers and for tensors that are converted; engines are measured with an error of 0.5 %, and
each scatters by 0.4 % around what its parts add up to. Values are means over eight folds that differ from policy to
policy. At most ten engines. Regret is how much more a policy loses than the best one that could be shown to be within
the limit by measuring it, as a share of what the most lossy policy loses. A loop's policy stands where another
measurement shows it to be within the limit too.
"""

import argparse
import sys
import time
from collections import Counter
from itertools import product

import numpy as np
from records import keep

from calib.formats.format import FP32
from deploy.latency.loop import LatencyLoop
from deploy.latency.observed import Observation
from deploy.latency.steps import Goal, LoopSettings
from smpq.problem.costs import is_integer
from smpq.problem.joins import Edge
from smpq.problem.policy import Policy
from smpq.solve.effort import Effort
from tests.deploy.synthetic import W4, W8A8, Truth, chain, space

LIMITS = (0.55, 0.65, 0.75, 0.85)
NOISE, SCATTER, CONVERSION = 0.005, 0.004, 0.02
FOLDS, FOLD_NOISE = 8, 0.02
MISSES = 1.96


class Network:
    """Values and latencies of all policies of a made-up network."""

    def __init__(self, seed: int, layers: int) -> None:
        self.seed, self.space = seed, space(layers, W8A8, W4, FP32)
        generator = np.random.default_rng(seed)
        self.names = [group.name for group in self.space.groups]
        self.formats = self.space.formats[self.names[0]]
        self.truth = self._drawn(generator)
        self.loss = {(n, f): generator.uniform(0.2, 1.0) * (f != FP32) for n in self.names for f in self.formats}
        self.joint = {pair: generator.uniform(0.0, 0.5) for pair in chain(self.space)}

    def _drawn(self, generator: np.random.Generator) -> Truth:
        """Return latencies: each layer saves what others of its format save, give or take 15 %."""
        saved = {W8A8: 0.6 * generator.uniform(0.7, 1.1), W4: 0.3 * generator.uniform(0.5, 1.3), FP32: 0.0}
        parts = {
            name: {f: -saved[f] / len(self.names) * generator.uniform(0.85, 1.15) for f in self.formats}
            for name in self.names
        }
        return Truth(parts, {pair: CONVERSION * generator.uniform(0.8, 1.2) for pair in chain(self.space)})

    @property
    def worst(self) -> float:
        """The value of the most lossy policy, joint losses counted everywhere."""
        alone = sum(max(self.loss[name, chosen] for chosen in self.formats) for name in self.names)
        return -alone - sum(self.joint.values())

    def normal(self, policy: Policy, what: int) -> float:
        return float(np.random.default_rng([self.seed, what, *policy.key().encode()]).standard_normal())

    def value(self, policy: Policy) -> float:
        alone = sum(self.loss[pair] for pair in policy.formats.items())
        return -alone - sum(cost for (a, b), cost in self.joint.items() if FP32 not in (policy[a], policy[b]))

    def ratio(self, policy: Policy) -> float:
        """Return the true ratio."""
        scatter = SCATTER * self.normal(policy, 100) if set(policy.formats.values()) != {FP32} else 0.0
        return self.truth.ratio(policy) + scatter

    def observation(self, policy: Policy, what: int = 101) -> Observation:
        return Observation(policy, self.ratio(policy) + NOISE * self.normal(policy, what), NOISE)

    def best(self, limit: float) -> float:
        """Return the value of the best policy whose measurement is expected to show that it is within a limit."""
        picks = np.array(list(product(range(len(self.formats)), repeat=len(self.names))))
        floats, integers = (np.array([test(f) for f in self.formats])[picks] for test in (FP32.__eq__, is_integer))
        value, ratio = np.zeros(len(picks)), np.ones(len(picks))
        for index, name in enumerate(self.names):
            value -= np.array([self.loss[name, f] for f in self.formats])[picks[:, index]]
            ratio += np.array([self.truth.parts[name][f] for f in self.formats])[picks[:, index]]
        for index, pair in enumerate(chain(self.space)):
            value -= self.joint[pair] * ~(floats[:, index] | floats[:, index + 1])
            ratio += self.truth.crossings[pair] * (integers[:, index] != integers[:, index + 1])
        return float(value[ratio + MISSES * NOISE <= limit].max(initial=-np.inf))


class Values:
    """The value, or one fold of it; counts what is asked for anew."""

    def __init__(self, network: Network, counted: Counter, folds: range) -> None:
        self._network, self._counted, self._folds = network, counted, folds
        self._known: dict[str, float] = {}

    def __call__(self, policy: Policy) -> float:
        key = policy.key()
        if key not in self._known:
            self._counted["folds"] += len(self._folds)
            noise = FOLD_NOISE * sum(self._network.normal(policy, fold) for fold in self._folds) / len(self._folds)
            quantised = any(chosen != FP32 for chosen in policy.formats.values())
            self._known[key] = self._network.value(policy) + noise * quantised
        return self._known[key]

    def many(self, policies) -> list[float]:  # noqa: ANN001
        return [self(policy) for policy in policies]


def searched(network: Network, limit: float) -> dict:
    """Search within a limit; returns a row."""
    counted: Counter = Counter()
    value = Values(network, counted, range(FOLDS))
    folds = [Values(network, counted, range(fold, fold + 1)) for fold in range(FOLDS)]
    names = network.names
    starts = {"alone": {name: {f: -network.loss[name, f] for f in network.formats} for name in names}}
    goal = Goal(limit, [], starts, Effort(rounds=1, exchanges=1), folds)
    edges = [Edge(first, second, 64) for first, second in chain(network.space)]
    start = time.process_time()
    loop = LatencyLoop(network.space, edges, value, goal, settings=LoopSettings(seed=network.seed))
    outcome = loop.run(network.observation)
    best = network.best(limit)
    labels = Counter(step.proposal.label for step in outcome.steps)
    errors = [(step.proposal.interval[1] - step.proposal.predicted) / MISSES for step in outcome.steps]
    beyond = [
        (step.proposal.predicted - limit) / error
        for step, error in zip(outcome.steps, errors, strict=True)
        if step.proposal.label != "experiment"
    ]
    return {
        "network": network.seed,
        "limit": limit,
        "met": outcome.met,
        "stands": outcome.met and network.observation(outcome.policy, 102).upper <= limit,
        "regret": max(best - network.value(outcome.policy), 0.0) / -network.worst if outcome.met else None,
        "engines": dict(labels),
        "predicted_to_miss": sum(each > MISSES for each in beyond),
        "evaluations": counted["folds"] / FOLDS,
        "cpu_seconds": time.process_time() - start,
    }


def summary_of(rows: list[dict]) -> dict:
    regrets = np.array([row["regret"] for row in rows if row["regret"] is not None])
    return {
        "loops": len(rows),
        "met": sum(row["met"] for row in rows),
        "stand": sum(row["stands"] for row in rows),
        "regret_mean": float(regrets.mean()),
        "regret_90": float(np.percentile(regrets, 90)),
        "regret_max": float(regrets.max()),
        "engines": float(np.mean([sum(row["engines"].values()) for row in rows])),
        "predicted_to_miss": float(np.mean([row["predicted_to_miss"] for row in rows])),
        "evaluations": float(np.mean([row["evaluations"] for row in rows])),
        "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in rows])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--layers", type=int, default=9)
    options = parser.parse_args()
    rows = []
    for seed in range(options.networks):
        network = Network(seed, options.layers)
        rows += [searched(network, limit) for limit in LIMITS]
        print(seed, summary_of(rows), file=sys.stderr, flush=True)
    keep(
        "made_up_loops",
        f"PYTHONPATH=. python benchmarks/made_up_loops.py --networks {options.networks} --layers {options.layers}",
        [0],
        rows,
        summary=summary_of(rows),
    )


if __name__ == "__main__":
    main()
