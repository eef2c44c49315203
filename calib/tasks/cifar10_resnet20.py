"""ResNet-20 on CIFAR-10, from the official python files and a file of weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.errors import UserError
from calib.files.weights import load_weights, restore
from calib.task import Batch, Task
from calib.tasks import register
from calib.tasks.cifar10_files import find_cifar10, read_cifar10

CALIBRATION_SEED = 0
CALIBRATION_IMAGES = 2048
CALIBRATION_BATCH = 128
EVALUATION_BATCH = 250
TRAINING_BATCH = 128
TRAINING_SEED = 1000
"""Added to the number of the epoch."""
PADDING = 4
# Of the training that the published weights come from; pixels are scaled to 0..1 first.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual add without parameters on the shortcut (option A of He et al. 2016, section
    4.2).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, h, w]` to `[n, outputs, h / stride, w / stride]`."""
        y = functional.relu(self.bn1(self.conv1(x)))
        shortcut = x
        if self.stride > 1:
            shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet20(nn.Module):
    """Nineteen 3x3 convolutions (16, 32 and 64 channels) and one linear layer; 0.27 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images `[n, 3, 32, 32]` to logits `[n, 10]`."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1), BasicBlock(outputs, outputs, 1)
        )


class Cifar10ResNet20:
    """2,048 training images calibrate, the other 47,952 train, the 10,000 test images evaluate."""

    name = "cifar10-resnet20"
    metric_name = "top-1"

    def __init__(self, data: Path | None, weights: Path) -> None:
        self._weights = weights
        self._model = ResNet20()
        restore(self._model, load_weights(weights), weights)
        self._data = find_cifar10(data) if data is not None else None

    def model(self) -> nn.Module:
        """Return the network with the weights of `--weights`."""
        return self._model.eval()

    def calibration(self) -> list[Batch]:
        """Return 2,048 training images, chosen by a fixed seed, in batches of 128."""
        pixels, labels = self._training_files
        chosen = self._shuffled[:CALIBRATION_IMAGES]
        return _batches(pixels[chosen], labels[chosen], CALIBRATION_BATCH)

    def example_inputs(self) -> Tensor:
        """Return a black image."""
        return torch.zeros(1, 3, 32, 32)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Yield the training images that do not calibrate, cropped and mirrored at random, in batches of 128."""
        pixels, labels = self._training_files
        generator = torch.Generator().manual_seed(TRAINING_SEED + epoch)
        order = self._shuffled[CALIBRATION_IMAGES:]
        order = order[torch.randperm(len(order), generator=generator)]
        for start in range(0, len(order), TRAINING_BATCH):
            part = order[start : start + TRAINING_BATCH]
            yield Batch((_normalised(_augmented(pixels[part], generator)),), labels[part])

    def evaluation(self) -> list[Batch] | None:
        """Return the 10,000 test images in batches of 250; None without a directory."""
        if self._data is None:
            return None
        return _batches(*read_cifar10(self._directory, train=False), EVALUATION_BATCH)

    @property
    def _directory(self) -> Path:
        if self._data is None:
            raise UserError(
                "task cifar10-resnet20 needs --data: the directory cifar-10-batches-py, or the one that holds it; only "
                "--data-free does without"
            )
        return self._data

    @cached_property
    def _training_files(self) -> tuple[Tensor, Tensor]:
        return read_cifar10(self._directory, train=True)

    @cached_property
    def _shuffled(self) -> Tensor:
        return torch.randperm(len(self._training_files[1]), generator=torch.Generator().manual_seed(CALIBRATION_SEED))

    def metric(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`: 1 where the largest logit is the label, otherwise 0."""
        correct: Tensor = output.argmax(1) == target
        return correct.float()

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the cross entropy `[n]`."""
        return functional.cross_entropy(output, target, reduction="none")


@register("cifar10-resnet20")
def cifar10_resnet20(data: Path | None, weights: Path | None) -> Task:
    """Make the task from the `cifar-10-batches-py` directory (or its parent) and a file of ResNet-20 weights. Without
    the directory there are no images: --data-free does without.
    """
    if weights is None:
        raise UserError("task cifar10-resnet20 needs --weights: a .safetensors file or a torch checkpoint of ResNet-20")
    return Cifar10ResNet20(data, weights)


def _batches(pixels: Tensor, labels: Tensor, size: int) -> list[Batch]:
    return [Batch((x,), y) for x, y in zip(_normalised(pixels).split(size), labels.split(size), strict=True)]


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def _augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels either way over black borders, and mirror every second one: He et al. 2016,
    section 4.2.
    """
    count, _, height, width = pixels.shape
    padded = functional.pad(pixels, (PADDING, PADDING, PADDING, PADDING))
    top, left = torch.randint(2 * PADDING + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, -1)
    columns = left[:, None] + torch.where(mirrored[:, None], columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
