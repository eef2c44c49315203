"""Where the tests find what a machine may lack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import slow_tests

if TYPE_CHECKING:
    from tests.warm import Server

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that share the cores wait for each other's threads at every product of matrices otherwise, up to twenty
    # times as long. The libraries read this when they are loaded, also in the processes that tests start.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

ROOT = Path(__file__).resolve().parent.parent
SLOW_FILES = {ROOT / "tests" / name for name in slow_tests.FILES}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.option.markexpr == "not slow" and collection_path in SLOW_FILES else None


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    assert all(path.is_file() for path in SLOW_FILES), "a file in tests/slow_tests.py has another name now"
    slow = set(slow_tests.FUNCTIONS)
    for item in items:
        if item.path in SLOW_FILES or getattr(item, "originalname", item.name) in slow:
            item.add_marker(pytest.mark.slow)
    if config.option.markexpr == "" and {Path(name).resolve() for name in config.args} == {ROOT / "tests"}:
        missing = slow - {getattr(item, "originalname", item.name) for item in items}
        assert not missing, f"tests/slow_tests.py names tests that are not there: {sorted(missing)}"


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Who made which run is kept apart from what the user of this machine has made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMPQ_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast() -> Iterator[None]:
    """Make once what is the same each time, and seldom look for garbage: half of the time of a small model."""
    from tests.solved_once import solved_once
    from tests.torch_kept import garbage_kept, torch_kept
    from tests.traced_once import traced_once

    with garbage_kept(), torch_kept(), traced_once(), solved_once():
        yield


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What starts processes that have made their imports already; one for all workers of this run of the tests."""
    from tests.warm import Server

    directory = tmp_path_factory.getbasetemp()
    with closing(Server(directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory)) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _short_measurements() -> Iterator[None]:
    from tests.short_measurements import short_measurements

    with short_measurements():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory with the reference weights, tables and tools that are not part of this repository."""
    directory = Path(os.environ.get("SMPQ_SHARED", ROOT.parent / "shared"))
    if not directory.is_dir():
        pytest.skip(f"needs the shared directory: {directory} does not exist, set SMPQ_SHARED")
    return directory


@pytest.fixture(scope="session")
def resnet20_weights(shared: Path) -> Path:
    path = shared / "data" / "resnet20-cifar10.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return path


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The official cifar-10-batches-py, or its parent."""
    text = os.environ.get("SMPQ_CIFAR10")
    if text is None:
        pytest.skip("needs the CIFAR-10 files: set SMPQ_CIFAR10 to cifar-10-batches-py")
    directory = Path(text)
    if not directory.is_dir():
        pytest.skip(f"SMPQ_CIFAR10 names {directory}, which does not exist")
    return directory


@pytest.fixture(scope="session")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of the tiny task. To be copied, not changed."""
    from tests.commands import TINY, done

    run = tmp_path_factory.mktemp("runs") / "good"
    done("run", *TINY, "--budget", "size=0.9x", "--out", run, "--quiet")
    return run
