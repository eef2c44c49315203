"""The curve against random plans: none may lie beyond it by more than the intervals of both.

Usage: curve.py CIFAR10_DIR RESNET20_WEIGHTS [--networks resnet20,resnet18] [--random 60] [--engines 16]

ResNet-20 and a ResNet-18 of random weights on this CPU, calibrated quickly, scored once; `smpq curve`, then random
plans, half of them scattered over the space, half drawn around the fastest engine of the curve. Each is built, measured
and judged on the evaluation data as the curve's points are. A plan lies beyond the curve when no point may be as fast
and as accurate: each point's interval of the ratio lies above the plan's, or its interval of the accuracy below. `by
means` counts the plans that no point beats when intervals are left out. Networks that are not asked for keep their rows
in the record. `cpu_seconds` are of this process.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from loop import near
from records import RESULTS, keep
from runs import open_network

from deploy.files.curve import CurveFile, PointRow
from deploy.latency.designs import random_policies
from deploy.latency.observed import observation_of
from deploy.run.workspace import Workspace
from deploy.stages.curving import draw_curve
from deploy.stages.judging import Judge
from deploy.stages.scoring import score
from smpq.files import Interval
from smpq.problem.policy import Policy, canonical

NETWORKS = ("resnet20", "resnet18")


def drawn(workspace: Workspace, curve: CurveFile, count: int) -> list[Policy]:
    """Return random plans: scattered ones, and others near the fastest engine."""
    space, generator, found = workspace.space, np.random.default_rng(1), {}
    fastest = next(Policy.from_file(point.policy, space) for point in curve.points if point.policy is not None)
    known = {Policy.from_file(point.policy, space).key() for point in curve.points if point.policy is not None}
    scattered = random_policies(space, count, 1000)
    while len(found) < count:
        close = canonical(near(space, fastest, 1.0, generator), space)
        policy = scattered.pop() if scattered and len(found) % 2 else close
        if policy.key() not in known:
            found[policy.key()] = policy
    return list(found.values())


def row_of(workspace: Workspace, judge: Judge, curve: CurveFile, policy: Policy) -> dict:
    (result,) = workspace.bench.time([workspace.candidates.candidate(policy)])
    observation = observation_of(policy, result)
    ratio = Interval.around(observation.ratio, observation.standard_error)
    judged = judge.of_policy(policy, "a random plan")

    def maybe_as_good(point: PointRow) -> bool:
        return (
            point.ratio_interval.low <= ratio.high and point.judged.change_interval.high >= judged.change_interval.low
        )

    def as_good(point: PointRow) -> bool:
        return point.ratio <= observation.ratio and point.judged.change >= judged.change

    return {
        "ratio": round(observation.ratio, 4),
        "ratio_interval": [round(ratio.low, 4), round(ratio.high, 4)],
        "change": judged.change,
        "change_interval": [judged.change_interval.low, judged.change_interval.high],
        "beyond": not any(map(maybe_as_good, curve.points)),
        "beyond_by_means": not any(map(as_good, curve.points)),
        "policy": {name: str(chosen) for name, chosen in policy.formats.items()},
    }


def network_row(name: str, directory: Path, options: argparse.Namespace) -> dict:
    with open_network(name, directory / name, options.data, options.weights) as workspace:
        start = time.process_time()
        score(workspace)
        scored = time.process_time()
        curve = draw_curve(workspace, options.engines)
        ended = time.process_time()
        print(f"{name}: {len(curve.points)} points in {ended - scored:.0f} CPU s", file=sys.stderr, flush=True)
        judge, rows = Judge(workspace), []
        for policy in drawn(workspace, curve, options.random):
            rows.append(row_of(workspace, judge, curve, policy))
            shown = {key: entry for key, entry in rows[-1].items() if key != "policy"}
            print(json.dumps(shown), file=sys.stderr, flush=True)
        points = [
            {
                "name": point.name, "kind": point.kind, "dominated": point.dominated, "ratio": round(point.ratio, 4),
                "ratio_interval": [round(point.ratio_interval.low, 4), round(point.ratio_interval.high, 4)],
                "accuracy": point.judged.accuracy, "change": point.judged.change,
                "change_interval": [point.judged.change_interval.low, point.judged.change_interval.high],
                "policy": point.policy.policy if point.policy is not None else None,
            }
            for point in curve.points
        ]  # fmt: skip
        return {
            "network": name,
            "beyond": sum(row["beyond"] for row in rows),
            "beyond_by_means": sum(row["beyond_by_means"] for row in rows),
            "random_plans": len(rows),
            "stop_reason": curve.stop_reason,
            "samples": curve.samples,
            "scoring_cpu_seconds": round(scored - start, 1),
            "curve_cpu_seconds": round(ended - scored, 1),
            "points": points,
            "plans": rows,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--random", type=int, default=60)
    parser.add_argument("--engines", type=int, default=16)
    options = parser.parse_args()
    names = options.networks.split(",")
    with tempfile.TemporaryDirectory() as directory:
        rows = [network_row(name, Path(directory), options) for name in names]
    file = RESULTS / "curve.json"
    known = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = [*(row for row in known if row["network"] not in names), *rows]
    keep(
        "curve",
        f"python benchmarks/curve.py CIFAR10_DIR RESNET20_WEIGHTS --random {options.random} "
        f"--engines {options.engines}",
        [0, 1, 1000],
        rows,
        beyond=f"{sum(row['beyond'] for row in rows)} of {sum(row['random_plans'] for row in rows)}",
    )


if __name__ == "__main__":
    main()
