"""A task of one's own with the things real models contain: `smpq run --task examples.custom_task:task ...`.

Residual adds written with `+` and with `+=`, a depthwise convolution, a module used twice, a Linear on 3-D input, and a
transposed convolution, which the tool leaves in floating point and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from calib.errors import UserError
from calib.files.cache import trained
from calib.task import Batch

TRAINING_IMAGES = 1200
CALIBRATION_IMAGES = 256
RECIPE = {"version": 1, "epochs": 15, "learning_rate": 1e-2, "batch": 100, "seed": 0}


class CustomNet(nn.Module):
    """8x8 digits in, ten logits out, on a detour."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 16, 2, 2)
        self.stem = nn.Conv2d(16, 24, 3, 2, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(24)
        self.pointwise = nn.Conv2d(24, 24, 1)
        self.twice = nn.Conv2d(24, 24, 3, 1, 1)
        self.shrink = nn.Conv2d(24, 32, 2, 2)
        self.mix = nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[n, 1, 8, 8]` in 0..1 to logits `[n, 10]`."""
        x = functional.relu(self.stem_bn(self.stem(self.up(x))))
        y = functional.relu(self.depthwise_bn(self.depthwise(x)))
        x = self.pointwise(y) + x
        x = functional.relu(x + self.twice(functional.relu(self.twice(x))))
        tokens = self.shrink(x).flatten(2).transpose(1, 2)
        mixed = functional.gelu(self.mix(tokens))
        mixed += tokens
        logits: Tensor = self.head(mixed.mean(1))
        return logits


class CustomTask:
    """scikit-learn's digits: 1,200 images to train on, 256 of these to calibrate with, the other 597 to evaluate."""

    name = "custom"
    metric_name = "top-1"

    def __init__(self) -> None:
        digits = load_digits()
        self._images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        self._labels = torch.tensor(digits.target, dtype=torch.int64)

    def model(self) -> nn.Module:
        """Return the network, trained on first use and cached; a model of your own would load its weights here."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RECIPE["seed"])
            return trained(self.name, CustomNet(), RECIPE, self._train, threads=1)

    def calibration(self) -> list[Batch]:
        """Return 256 training images in batches of 64."""
        return self._batches(torch.arange(CALIBRATION_IMAGES), 64)

    def evaluation(self) -> list[Batch]:
        """Return the held-out images in batches of 199."""
        return self._batches(torch.arange(TRAINING_IMAGES, len(self._labels)), 199)

    def metric(self, output: Any, target: Any) -> Tensor:
        """Return `[n]`: 1 where the largest logit is the label, otherwise 0."""
        correct: Tensor = output.argmax(1) == target
        return correct.float()

    def loss(self, output: Any, target: Any) -> Tensor:
        """Return the cross entropy `[n]`."""
        return functional.cross_entropy(output, target, reduction="none")

    def _batches(self, chosen: Tensor, size: int) -> list[Batch]:
        return [Batch((self._images[part],), self._labels[part]) for part in chosen.split(size)]

    def _train(self, model: nn.Module) -> None:
        size, epochs = int(RECIPE["batch"]), int(RECIPE["epochs"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE["learning_rate"])
        steps = epochs * TRAINING_IMAGES // size
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["learning_rate"], total_steps=steps)
        model.train()
        for _ in range(epochs):
            for part in torch.randperm(TRAINING_IMAGES).split(size):
                optimizer.zero_grad()
                functional.cross_entropy(model(self._images[part]), self._labels[part]).backward()
                optimizer.step()
                schedule.step()


def task(data: Path | None, weights: Path | None) -> CustomTask:
    """Make the task; name it `examples.custom_task:task`."""
    for option, path in (("--data", data), ("--weights", weights)):
        if path is not None:
            raise UserError(f"this task takes no {option} ({path}): leave it out")
    return CustomTask()
