"""Train a supernet of all formats, from which the methods of `smpq.methods.supernet` take their scores."""

from __future__ import annotations

from deploy.run.workspace import Workspace
from deploy.stages.scoring import search_problem
from smpq.methods.supernet import train_supernet as train_supernet_of
from smpq.supernet.network import Supernet
from smpq.supernet.settings import SupernetSettings
from smpq.supernet.state import SupernetState, SupernetStateFile

SUPERNET = SupernetStateFile.NAME


def train_supernet(workspace: Workspace, settings: SupernetSettings | None = None) -> tuple[Supernet, SupernetState]:
    """Train the run's supernet, or go on where it stopped. Writes `supernet.safetensors` and `supernet.json`."""
    return train_supernet_of(search_problem(workspace), settings)
