"""What the tasks on CIFAR-10 share: the official python files, their split, and distortion."""

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
from calib.task import Batch
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


class Cifar10Task:
    """2,048 training images calibrate, the other 47,952 train, the 10,000 test images evaluate.

    Without the directory of the files, or its parent, there are no images: --data-free does without. Without weights
    the network stays as it is.
    """

    metric_name = "top-1"

    def __init__(self, name: str, network: nn.Module, data: Path | None, weights: Path | None) -> None:
        self.name = name
        self._model = network
        if weights is not None:
            restore(network, load_weights(weights), weights)
        self._data = find_cifar10(data) if data is not None else None

    def model(self) -> nn.Module:
        """Return the network, in eval mode."""
        return self._model.eval()

    def calibration(self) -> list[Batch]:
        """Return 2,048 training images, chosen by a fixed seed, in batches of 128."""
        pixels, labels = self._training_files
        chosen = self._shuffled[:CALIBRATION_IMAGES]
        return _batches(pixels[chosen], labels[chosen], CALIBRATION_BATCH)

    def example_inputs(self) -> Tensor:
        """Return a black image."""
        return torch.zeros(1, 3, 32, 32)

    @property
    def training_images(self) -> int:
        """Of an epoch."""
        return len(self._shuffled) - CALIBRATION_IMAGES

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
        return _batches(*self._test_files, EVALUATION_BATCH)

    @property
    def _directory(self) -> Path:
        if self._data is None:
            raise UserError(
                f"task {self.name} needs --data: the directory cifar-10-batches-py, or the one that holds it; only "
                "--data-free does without"
            )
        return self._data

    @cached_property
    def _training_files(self) -> tuple[Tensor, Tensor]:
        return read_cifar10(self._directory, train=True)

    @cached_property
    def _test_files(self) -> tuple[Tensor, Tensor]:
        return read_cifar10(self._directory, train=False)

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


def _batches(pixels: Tensor, labels: Tensor, size: int) -> list[Batch]:
    return [Batch((_normalised(x),), y) for x, y in zip(pixels.split(size), labels.split(size), strict=True)]


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
