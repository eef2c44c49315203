import pytest
import torch
from safetensors.torch import save_file

from calib.errors import UserError
from calib.tasks import load_task
from calib.tasks.cifar10_vit import Cifar10Vit


def test_it_says_how_the_weights_are_made(cifar10_like, tmp_path):
    for weights in (None, tmp_path / "missing.safetensors"):
        with pytest.raises(UserError, match=r"needs --weights: .*train_cifar10_vit\.py"):
            load_task("cifar10-vit", cifar10_like, weights)


def test_it_gives_the_network_of_the_file_and_the_images_of_all_cifar10_tasks(cifar10_like, resnet20_like, tmp_path):
    made, path = Cifar10Vit().eval(), tmp_path / "vit.safetensors"
    save_file(made.state_dict(), path)
    task = load_task("cifar10-vit", cifar10_like, path)
    assert task.name == "cifar10-vit"
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(task.model()(images), made(images))
    other = load_task("cifar10-resnet20", cifar10_like, resnet20_like)
    assert torch.equal(task.calibration()[0].inputs[0], other.calibration()[0].inputs[0])
