"""Where the tests find what a machine may lack."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that share the cores wait for each other's threads at every product of matrices otherwise, up to twenty
    # times as long. The libraries read this when they are loaded, also in the processes that tests start.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

from deploy.latency import bench
from deploy.runner.protocol import Protocol
from deploy.stages import making
from tests.torch_kept import torch_kept
from tests.traced_once import traced_once

ROOT = Path(__file__).resolve().parent.parent
SLOW = (
    "calib/tasks/test_cifar10_files.py", "deploy/backends/test_onnxruntime.py", "deploy/backends/test_tensorrt.py",
    "deploy/backends/test_tensorrt_kernels.py", "deploy/backends/test_tensorrt_module.py", "deploy/devices/test_bundle.py", "deploy/devices/test_mutations.py",
    "deploy/devices/test_odd_devices.py", "deploy/devices/test_runner_zip.py", "deploy/devices/test_ssh.py",
    "deploy/devices/test_ssh_loop.py", "deploy/doctor/test_command.py", "deploy/latency/test_loop.py", "deploy/latency/test_loop_refusals.py",
    "deploy/run/test_lock.py", "deploy/run/test_loop_history.py", "deploy/run/test_trust.py", "deploy/runner/test_causes.py",
    "deploy/runner/test_failing_engines.py", "deploy/runner/test_main.py", "deploy/stages/test_bundles.py", "deploy/stages/test_computed_once.py", "deploy/stages/test_finetuning.py", "deploy/stages/test_looping.py",
    "deploy/stages/test_supernet.py", "deploy/stages/test_verifying.py", "deploy/test_broken_graphs.py",
    "deploy/test_capabilities_hold.py", "deploy/test_forged_weights.py", "deploy/test_networks.py",
    "deploy/test_residual_adds.py", "deploy/test_training_device.py",
    "examples/test_cifar10_mlp.py", "examples/test_custom_task.py", "promise/test_promise.py",
    "run_files/test_mutations.py", "smpq/training/test_devices.py", "smpq/training/test_finetune.py",
    "smpq/training/test_finetuned.py", "smpq/value/workers/test_local.py", "smpq/value/workers/test_ray.py",
    "test_cli.py", "test_killed_runs.py", "test_odd_networks.py",
    "test_same_files.py", "test_whole_job.py", "test_wrong_data.py", "test_wrong_inputs.py",
    "test_wrong_run_files.py",
)  # fmt: skip
"""Files of whole runs, of processes and of hundreds of networks: all their tests are marked `slow`, and `make
test-quick` leaves them out.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {ROOT / "tests" / name for name in SLOW}
    assert all(path.is_file() for path in slow), "a file of the list has another name now"
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Who made which run is kept apart from what the user of this machine has made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMPQ_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast() -> Iterator[None]:
    """Make torch's own tables once, and do not look for garbage among what was imported: a third of the time of a small
    model.
    """
    gc.collect()
    gc.freeze()
    with torch_kept(), traced_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_measurements() -> Iterator[None]:
    """Time the final engine for a tenth of a second and not for one and a half: no test depends on how narrow the
    interval is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "FINAL", Protocol(rounds=9, round_ms=4.0, singles=200))
        patch.setattr(bench, "THOROUGH", Protocol(rounds=15, round_ms=8.0))
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
