"""The training data of the built-in tasks, and what a task of the user's own may get wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from calib.data import training_batches
from calib.errors import UserError
from calib.sizes import shapes_of_one, sizes_of
from calib.task import Batch, TrainableTask
from calib.tasks import load_task
from calib.tasks.cifar10 import CALIBRATION_IMAGES, MEAN, STD
from calib.tasks.cifar10_files import read_cifar10
from tests.calib.conftest import write_batch

MANY = CALIBRATION_IMAGES // 5 + 26


@pytest.fixture
def cifar10_many(cifar10_like, resnet20_like):
    for index in range(1, 6):
        write_batch(cifar10_like / f"data_batch_{index}", index, MANY)
    return load_task("cifar10-resnet20", cifar10_like, resnet20_like)


def stacked(batches):
    batches = list(batches)
    return torch.cat([batch.inputs[0] for batch in batches]), torch.cat([batch.target for batch in batches])


def test_cifar10_trains_on_what_does_not_calibrate(cifar10_many, cifar10_like):
    images, labels = stacked(training_batches(cifar10_many, 0))
    calibrating, _ = stacked(cifar10_many.calibration())
    assert len(images) == 5 * MANY - CALIBRATION_IMAGES
    everything = read_cifar10(cifar10_like, train=True)[0].reshape(-1, 3072).numpy()
    pixels = unnormalised(images)
    held_out = {image.tobytes() for image in unnormalised(calibrating).to(torch.uint8).reshape(-1, 3072).numpy()}
    assert len(held_out) == CALIBRATION_IMAGES
    trained = {row.tobytes() for row in everything} - held_out
    matched = [original_of(image, trained) for image in pixels[:20]]
    assert None not in matched
    assert len(set(matched)) == len(matched)
    assert len(labels) == len(images)


def unnormalised(images):
    return ((images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255).round()


def original_of(image, candidates):
    """The image that was shifted and perhaps mirrored to make this one."""
    core = image[:, 8:24, 8:24].to(torch.uint8)
    for raw in candidates:
        source = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(3, 32, 32)
        for mirrored in (source, source.flip(2)):
            windows = mirrored[:, 4:28, 4:28].unfold(1, 16, 1).unfold(2, 16, 1)
            if bool((windows == core[:, None, None]).all(dim=(0, 3, 4)).any()):
                return raw
    return None


@pytest.mark.parametrize("name", ["digits", "digits-vit", "cifar10"])
def test_a_pass_depends_on_its_number_alone(name, request):
    task = request.getfixturevalue("cifar10_many") if name == "cifar10" else load_task(name)
    assert isinstance(task, TrainableTask)
    first, labels = stacked(training_batches(task, 3))
    torch.rand(7)
    again, labels_again = stacked(training_batches(task, 3))
    other, other_labels = stacked(training_batches(task, 4))
    assert torch.equal(first, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(first, other)
    assert sorted(labels.tolist()) == sorted(other_labels.tolist())


def test_digits_train_on_what_does_not_calibrate():
    task = load_task("digits")
    state = torch.random.get_rng_state()
    images, labels = stacked(training_batches(task, 0))
    assert torch.equal(torch.random.get_rng_state(), state)
    calibrating, calibrating_labels = stacked(task.calibration())
    evaluating, evaluating_labels = stacked(task.evaluation())
    assert len(images) + len(calibrating) + len(evaluating) == 1797
    every = np.bincount(torch.cat([labels, calibrating_labels, evaluating_labels]))
    assert every.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # of the whole data set
    with torch.no_grad():
        assert (task.model()(images).argmax(1) == labels).float().mean() > 0.95


class Own:
    name = "own"
    metric_name = "nothing"

    def __init__(self, batches):
        self._batches = batches

    def model(self):
        return nn.Identity()

    def calibration(self):
        return []

    def evaluation(self):
        return []

    def metric(self, output, target):
        return output

    def loss(self, output, target):
        return output

    def training(self, epoch):
        if isinstance(self._batches, Exception):
            raise self._batches
        return self._batches


def good(count=4):
    return Batch((torch.zeros(count, 3),), torch.zeros(count))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"training\(7\) gave no batch"),
        ([good(), Batch((torch.tensor([[1.0, 2.0, float("nan")]]),), None)], "training batch 1 of epoch 7 holds NaN"),
        ([good(), Batch((torch.zeros(4, 5),), None)], r"training batch 1 of epoch 7 has samples of 5, and .* takes 3:"),
        ([torch.zeros(4, 3)], "must be a calib.task.Batch"),
        (3, "training.* must return batches to loop over"),
        (OSError("disk gone"), r"training\(7\) failed: OSError: disk gone"),
    ],
)
def test_wrong_training_data(batches, message):
    with pytest.raises(UserError, match=message):
        list(training_batches(Own(batches), 7, sizes_of([shapes_of_one([x.shape for x in good().inputs])], ["x"])))


def test_a_task_without_training_data():
    class Plain(Own):
        training = None

    assert len(list(training_batches(Own([good(), good(2)]), 0))) == 2
    with pytest.raises(UserError, match="task own has no training data: give it a method training"):
        next(training_batches(Plain([]), 0))
