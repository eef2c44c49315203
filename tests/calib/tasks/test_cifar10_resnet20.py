import pytest
import torch
from safetensors.torch import load_file, save_file

from calib.errors import UserError
from calib.tasks import load_task
from calib.tasks.cifar10 import MEAN, STD
from calib.tasks.cifar10_resnet20 import ResNet20


def test_weights_are_needed_and_images_only_where_they_are_read(cifar10_like, resnet20_like):
    with pytest.raises(UserError, match="needs --weights"):
        load_task("cifar10-resnet20", cifar10_like, None)
    task = load_task("cifar10-resnet20", None, resnet20_like)
    assert task.evaluation() is None
    assert task.model()(task.example_inputs()).shape == (1, 10)
    for read in (task.calibration, lambda: next(task.training(0))):
        with pytest.raises(UserError, match=r"needs --data: .* only --data-free does without"):
            read()


def test_a_torch_checkpoint_gives_the_same_model(cifar10_like, resnet20_like, tmp_path):
    torch.save({"state_dict": load_file(resnet20_like)}, tmp_path / "w.pth")
    one = load_task("cifar10-resnet20", cifar10_like, resnet20_like).model()
    two = load_task("cifar10-resnet20", cifar10_like.parent, tmp_path / "w.pth").model()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(one(images), two(images))


def test_images_are_normalised(cifar10_like, resnet20_like):
    task = load_task("cifar10-resnet20", cifar10_like, resnet20_like)
    (batch,) = task.evaluation()
    pixels = batch.inputs[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert pixels.min() + 1e-6 >= 0
    assert pixels.max() <= 1 + 1e-6
    assert torch.allclose((pixels * 255).round(), pixels * 255, atol=1e-3)


def test_calibration_is_the_same_every_time(cifar10_like, resnet20_like):
    task = load_task("cifar10-resnet20", cifar10_like, resnet20_like)
    for one, two in zip(task.calibration(), task.calibration(), strict=True):
        assert torch.equal(one.inputs[0], two.inputs[0])
        assert torch.equal(one.target, two.target)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer2.0.conv1.weight", None, r"'layer2\.0\.conv1\.weight'.*\[32, 16, 3, 3\]"),
        ("linear.weight", torch.zeros(100, 64), r"'linear\.weight'.*\[100, 64\].*\[10, 64\]"),
        ("bn1.running_var", torch.full((16,), float("nan")), r"'bn1\.running_var'.*NaN"),
        ("fc.weight", torch.zeros(1), r"'fc\.weight'"),
    ],
)
def test_wrong_weights_name_the_tensor(cifar10_like, resnet20_like, key, value, message):
    weights = load_file(resnet20_like)
    weights.pop(key, None)
    if value is not None:
        weights[key] = value
    save_file(weights, resnet20_like)
    with pytest.raises(UserError, match=message):
        load_task("cifar10-resnet20", cifar10_like, resnet20_like)


def test_the_published_weights_fit(cifar10_like, resnet20_weights):
    model = load_task("cifar10-resnet20", cifar10_like, resnet20_weights).model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 269722
    assert sum(p.numel() for p in ResNet20().parameters()) == 269722


@pytest.mark.slow
def test_the_published_accuracy(cifar10, resnet20_weights):
    task = load_task("cifar10-resnet20", cifar10, resnet20_weights)
    model = task.model()
    assert sum(len(batch.target) for batch in task.calibration()) == 2048
    with torch.no_grad():
        correct = torch.cat([task.metric(model(*batch.inputs), batch.target) for batch in task.evaluation()])
    assert len(correct) == 10_000
    # One image more or less may change with the order of a sum.
    assert abs(correct.sum().item() - 8850) <= 1
