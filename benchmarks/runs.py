"""Runs of the tool on the networks of the latency benchmarks."""

from pathlib import Path

import torch

from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress

NETWORKS = {"resnet20": "cifar10-resnet20", "resnet18": "networks:resnet18_task", "vit_tiny": "networks:vit_tiny_task"}
"""Name -> task; those with a colon are in `networks.py`, beside the scripts."""
TASKS = {**NETWORKS, "digits-vit": "digits-vit", "fastestdet": "fastestdet:fastestdet_task"}
_SAMPLES = {"resnet20": 256, "digits-vit": 256, "fastestdet": 16}


def open_network(name: str, directory: Path, data: Path, weights: Path) -> Workspace:
    """Open a run of the network on this CPU with the target's own formats, calibrated quickly."""
    torch.set_num_threads(1)
    settings = Settings(
        task=TASKS[name],
        data=str(data) if name in ("resnet20", "fastestdet") else None,
        weights=str(weights) if name == "resnet20" else None,
        target="ort-cpu",
        rounding="nearest",
        observer="minmax",
        samples=_SAMPLES.get(name, 16),
        evaluations=200,
    )
    return open_run(directory, Progress(), settings)
