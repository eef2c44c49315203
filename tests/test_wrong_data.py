"""Data and weights that are not what they should be: one message each."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from calib.tasks.cifar10_resnet20 import ResNet20
from tests.calib.conftest import write_batch
from tests.commands import refused


@pytest.fixture
def cifar(tmp_path):
    """Arguments of a search on made-up CIFAR-10 files, and the weights file."""
    data = tmp_path / "cifar-10-batches-py"
    data.mkdir()
    for seed, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        write_batch(data / name, seed)
    weights = tmp_path / "weights.safetensors"
    save_file(ResNet20().state_dict(), weights)
    return ["score", "--task", "cifar10-resnet20", "--data", data, "--out", tmp_path / "run"], weights


def test_data(cifar, tmp_path):
    arguments, weights = cifar
    assert "--data" in refused(*arguments[:3], "--weights", weights, "--out", tmp_path / "run")
    assert "nowhere" in refused(*arguments, "--data", tmp_path / "nowhere", "--weights", weights)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"\x80\x02}q")
    assert "data_batch_3" in refused(*arguments, "--weights", weights)
    assert not (tmp_path / "run").exists()


def test_weights(cifar, tmp_path):
    arguments, weights = cifar
    assert "--weights" in refused(*arguments)
    assert "there is no weights file" in refused(*arguments, "--weights", tmp_path / "nowhere.safetensors")
    state = ResNet20().state_dict()
    name = next(key for key, tensor in state.items() if tensor.dim() == 4)
    cases = {
        "has shape [7], the model wants": {**state, name: torch.zeros(7)},
        "has no tensor": {key: tensor for key, tensor in state.items() if key != name},
        "holds 'extra' and the model does not": {**state, "extra": torch.zeros(1)},
        "holds NaN": {**state, name: torch.full_like(state[name], float("nan"))},
    }
    for message, tensors in cases.items():
        save_file(tensors, weights)
        assert message in refused(*arguments, "--weights", weights)
    save_file(state, weights)
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "as safetensors" in refused(*arguments, "--weights", weights)
    text = tmp_path / "weights.pt"
    text.write_text("these are not weights")
    assert "as a file of torch.save" in refused(*arguments, "--weights", text)
    assert not (tmp_path / "run").exists()
