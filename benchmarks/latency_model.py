"""The latency model: how well do at most 12 measured engines predict 12 others? Latency on this CPU, batch 1, one
thread, CPU clock.

Usage: latency_model.py CIFAR10_DIR RESNET20_WEIGHTS [--seeds 0,1,2] [--networks resnet20,resnet18,vit_tiny]

ResNet-20 for 32x32 images, a ResNet-18-shaped network and a ViT-tiny-shaped one of six layers for 224x224. The 12
engines are those the tool itself would measure first; the others are random plans of another seed, formats and
placement of joins alike. Bar: 3 % mean absolute error.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from records import keep
from runs import NETWORKS, open_network

from deploy.latency.designs import designed_policies, random_policies
from deploy.latency.model import fit
from deploy.run.float_onnx import export_float_model

MEASURED, OTHERS = 12, 12


def rows_of(name: str, seeds: list[int], directory: Path, options: argparse.Namespace) -> list[dict]:
    rows = []
    with open_network(name, directory / name, options.data, options.weights) as workspace:
        export_float_model(workspace)
        bench, between, space = workspace.bench, workspace.edges, workspace.space
        for seed in seeds:
            start = time.process_time()
            measured = [bench.observe(policy) for policy in designed_policies(space, between, MEASURED, seed)]
            fitting = time.process_time()
            model = fit(space, between, measured)
            fitting = time.process_time() - fitting
            known = {observation.policy.key() for observation in measured}
            others = [
                policy for policy in random_policies(space, OTHERS + MEASURED, 1000 + seed) if policy.key() not in known
            ]
            tested = [bench.observe(policy) for policy in others[:OTHERS]]
            predicted = [model.predict(observation.policy) for observation in tested]
            errors = [abs(mean / seen.ratio - 1) for (mean, _), seen in zip(predicted, tested, strict=True)]
            inside = [
                abs(mean - seen.ratio) <= 1.96 * error for (mean, error), seen in zip(predicted, tested, strict=True)
            ]
            rows.append(
                {
                    "network": name,
                    "seed": seed,
                    "groups": len(space.groups),
                    "formats": [str(chosen) for chosen in workspace.target.default_formats],
                    "joins": len(space.joins),
                    "measured": len(measured),
                    "others": len(tested),
                    "mean_absolute_error": float(np.mean(errors)),
                    "largest_error": float(np.max(errors)),
                    "inside_95_interval": float(np.mean(inside)),
                    "correlation": float(
                        np.corrcoef([mean for mean, _ in predicted], [seen.ratio for seen in tested])[0, 1]
                    ),
                    "ratios": [min(seen.ratio for seen in tested), max(seen.ratio for seen in tested)],
                    "fit_seconds": fitting,
                    "cpu_seconds": time.process_time() - start,
                    "predicted_and_measured": [
                        [mean, seen.ratio] for (mean, _), seen in zip(predicted, tested, strict=True)
                    ],
                }
            )
            print(
                {key: value for key, value in rows[-1].items() if key != "predicted_and_measured"},
                file=sys.stderr,
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    options = parser.parse_args()
    seeds = [int(text) for text in options.seeds.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        rows = [row for name in options.networks.split(",") for row in rows_of(name, seeds, Path(directory), options)]
    mean = {
        name: float(np.mean([row["mean_absolute_error"] for row in rows if row["network"] == name]))
        for name in dict.fromkeys(row["network"] for row in rows)
    }
    keep(
        "latency_model",
        "python benchmarks/latency_model.py CIFAR10_DIR RESNET20_WEIGHTS",
        seeds,
        rows,
        mean_absolute_error=mean,
    )


if __name__ == "__main__":
    main()
