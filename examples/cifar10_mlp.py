"""A multi-layer perceptron on flattened CIFAR-10 images: `smpq run --task examples.cifar10_mlp:task --data D ...`.

Without `--data` the task makes a ten-class problem of the same size itself, so that latency can be studied on any
machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.files.cache import trained
from calib.files.weights import load_weights, restore
from calib.task import Batch
from calib.tasks.cifar10_files import find_cifar10, read_cifar10

INPUTS, HIDDEN, CLASSES = 3 * 32 * 32, 1024, 10
CALIBRATION_IMAGES = 1024
BATCH = 256
RECIPE = {"version": 1, "hidden": HIDDEN, "epochs": 4, "learning_rate": 1e-3, "batch": 256, "seed": 0}
SYNTHETIC_TRAINING, SYNTHETIC_EVALUATION = 8192, 2048


class Mlp(nn.Module):
    """Three hidden layers of 1,024 with ReLU, and ten outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.fc3 = nn.Linear(HIDDEN, HIDDEN)
        self.fc4 = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, 3072]` to logits `[n, 10]`."""
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        x = functional.relu(self.fc3(x))
        logits: Tensor = self.fc4(x)
        return logits


class MlpTask:
    """CIFAR-10 from `data`, or the synthetic problem; weights from `weights`, or trained once and cached."""

    metric_name = "top-1"

    def __init__(self, data: Path | None, weights: Path | None) -> None:
        self.name = "cifar10-mlp" if data is not None else "synthetic-mlp"
        self._weights = weights
        if data is not None:
            directory = find_cifar10(data)
            self._training = _normalised(*read_cifar10(directory, train=True))
            self._evaluation = _normalised(*read_cifar10(directory, train=False))
        else:
            images, labels = _synthetic(SYNTHETIC_TRAINING + SYNTHETIC_EVALUATION)
            self._training = images[:SYNTHETIC_TRAINING], labels[:SYNTHETIC_TRAINING]
            self._evaluation = images[SYNTHETIC_TRAINING:], labels[SYNTHETIC_TRAINING:]

    def model(self) -> nn.Module:
        """Return the trained network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RECIPE["seed"])
            model = Mlp()
            if self._weights is None:
                return trained(self.name, model, RECIPE, self._train)
        restore(model, load_weights(self._weights), self._weights)
        return model.eval()

    def calibration(self) -> list[Batch]:
        """Return 1,024 training samples, chosen by a fixed seed, in batches of 256."""
        images, labels = self._training
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
        return _batches(images[chosen], labels[chosen])

    def evaluation(self) -> list[Batch]:
        """Return the held-out samples in batches of 256."""
        return _batches(*self._evaluation)

    def metric(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`: 1 where the largest logit is the label, otherwise 0."""
        correct: Tensor = output.argmax(1) == target
        return correct.float()

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the cross entropy `[n]`."""
        return functional.cross_entropy(output, target, reduction="none")

    def _train(self, model: nn.Module) -> None:
        images, labels = self._training
        size, epochs = int(RECIPE["batch"]), int(RECIPE["epochs"])
        steps = len(labels) // size
        optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["learning_rate"], weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["learning_rate"], total_steps=epochs * steps)
        model.train()
        for _ in range(epochs):
            for part in torch.randperm(len(labels))[: steps * size].split(size):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[part]), labels[part]).backward()
                optimizer.step()
                schedule.step()


def task(data: Path | None, weights: Path | None) -> MlpTask:
    """Make the task; name it `examples.cifar10_mlp:task`."""
    return MlpTask(data, weights)


def _batches(images: Tensor, labels: Tensor) -> list[Batch]:
    return [Batch((x,), y) for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)]


def _normalised(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return (pixels.flatten(1).float() / 255 - 0.473) / 0.251, labels


def _synthetic(count: int) -> tuple[Tensor, Tensor]:
    """Return ten overlapping clouds with a few directions of large variance, `[count, 3072]`, and their labels."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, INPUTS, generator=generator) * 0.08
    directions = torch.randn(32, INPUTS, generator=generator) / 8
    shared = torch.randn(count, 32, generator=generator) @ directions
    return centres[labels] + shared + torch.randn(count, INPUTS, generator=generator), labels
