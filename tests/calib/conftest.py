"""Small stand-ins for CIFAR-10 and its weights, in the official file format."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from calib.tasks.cifar10_resnet20 import ResNet20


def write_batch(path: Path, seed: int, count: int = 6) -> None:
    random = np.random.default_rng(seed)
    record = {
        b"batch_label": path.name.encode(),
        b"labels": [int(value) for value in random.integers(0, 10, count)],
        b"data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
        b"filenames": [b"x.png"] * count,
    }
    path.write_bytes(pickle.dumps(record, protocol=2))


@pytest.fixture
def cifar10_like(tmp_path: Path) -> Path:
    directory = tmp_path / "data" / "cifar-10-batches-py"
    directory.mkdir(parents=True)
    for seed, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        write_batch(directory / name, seed)
    return directory


@pytest.fixture
def resnet20_like(tmp_path: Path) -> Path:
    path = tmp_path / "resnet20.safetensors"
    save_file(ResNet20().state_dict(), path)
    return path
