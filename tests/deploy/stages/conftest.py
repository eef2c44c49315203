"""A run of the tiny task that has scores, for all tests of the loop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from deploy.devices.local import LocalDevice
from deploy.run.directory import Run
from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.stages.run_all import open_run
from deploy.stages.scoring import score
from deploy.terminal.progress import Progress


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A run that has scores. To be copied, not changed."""
    settings = Settings("tests.tiny_task:exacting", formats="w8a8,fp32", samples=16, evaluations=12)
    with open_run(tmp_path_factory.mktemp("looping") / "run", Progress(Console(quiet=True)), settings) as workspace:
        score(workspace)
        yield workspace


@pytest.fixture
def workspace(scored: Workspace, tmp_path: Path) -> Workspace:
    path = tmp_path / "run"
    shutil.copytree(scored.run.path, path)
    return replace(scored, run=Run(path), device=LocalDevice(path / "device"))
