"""Runs of the tool on the networks of the latency benchmarks."""

from pathlib import Path

import torch

from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress

NETWORKS = {"resnet20": "cifar10-resnet20", "resnet18": "networks:resnet18_task", "vit_tiny": "networks:vit_tiny_task"}
"""Name -> task; those with a colon are in `networks.py`, beside the scripts."""


def open_network(name: str, directory: Path, data: Path, weights: Path) -> Workspace:
    """Open a run of the network on this CPU with the target's own formats, calibrated quickly."""
    torch.set_num_threads(1)
    own = name == "resnet20"
    settings = Settings(
        task=NETWORKS[name],
        data=str(data) if own else None,
        weights=str(weights) if own else None,
        target="ort-cpu",
        rounding="nearest",
        observer="minmax",
        samples=256 if own else 16,
        evaluations=200,
    )
    return open_run(directory, Progress(), settings)
