"""CPU seconds from a module to its layers that can be quantised: tracing, folding of BatchNorm, finding units.

Usage: tracing.py [--before CHECKOUT] [--rounds N]

ResNet-20, ResNet-56 and ViT-B with random weights, one thread. Each measurement has a process of its own: `first` is
the first trace in it, which imports a third of torch as well, `again` the second. With the directory of an earlier
checkout its figures are taken too, the two in turn. Medians of all rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from networks import vit_b
from records import keep
from torch import Tensor, nn

from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.tasks.cifar10_resnet20 import BasicBlock, ResNet20

BARS = {"ResNet-56": 6, "ViT-B": 20}
NETWORKS = {"ResNet-20": 3, "ResNet-56": 9, "ViT-B": None}
"""Blocks of each stage, of those that have stages."""
HERE = Path(__file__).resolve().parent.parent


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network and an example of two samples."""
    torch.manual_seed(0)
    blocks = NETWORKS[name]
    if blocks is None:
        return vit_b(), (torch.randn(2, 3, 224, 224),)
    model = ResNet20()
    for stage, width in ((model.layer1, 16), (model.layer2, 32), (model.layer3, 64)):
        stage.extend(BasicBlock(width, width, 1) for _ in range(blocks - len(stage)))
    return model.eval(), (torch.randn(2, 3, 32, 32),)


def measure(name: str) -> dict[str, float]:
    """Trace a network twice; the second time it is another object."""
    torch.set_num_threads(1)
    found = {}
    for label in ("first", "again"):
        module, example = network(name)
        start = time.process_time()
        traced, folded = trace_folded(module, example, {1, 8, 32})
        units, _ = find_units(traced)
        found[label] = time.process_time() - start
        found |= {"folded": len(folded), "units": len(units), "steps": len(traced.steps)}
    return found


def measured(checkout: Path, name: str) -> dict[str, float]:
    """Measure in a process that imports the packages of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="an earlier checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=NETWORKS, help="measure once in this process, and print it")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    checkouts = {"before": options.before.resolve()} if options.before else {}
    checkouts |= {"after": HERE}
    found: dict[tuple[str, str], list[dict[str, float]]] = {(n, c): [] for n in NETWORKS for c in checkouts}
    for _ in range(options.rounds):
        for (name, checkout), results in found.items():
            results.append(measured(checkouts[checkout], name))
    rows = []
    for name in NETWORKS:
        row = {"network": name, **{key: found[name, "after"][0][key] for key in ("steps", "folded", "units")}}
        for checkout in checkouts:
            results = found[name, checkout]
            row[checkout] = {key: round(statistics.median(r[key] for r in results), 2) for key in ("first", "again")}
        rows.append(row)
    before = "--before CHECKOUT " if options.before else ""
    keep("tracing", f"python benchmarks/tracing.py {before}--rounds {options.rounds}", [0], rows, bars=BARS)


if __name__ == "__main__":
    main()
