"""scikit-learn's digits with a small residual network: needs no download and trains in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from calib.cache import trained
from calib.errors import UserError
from calib.task import Batch, Task
from calib.tasks import register

# Wide enough that arithmetic, not call overhead, decides the latency of one image.
RECIPE = {
    "version": 1,
    "width": 48,
    "epochs": 8,
    "batch": 64,
    "learning_rate": 0.05,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    # Half ranges of the random rotation (radians), relative size and shift (in half image widths).
    "rotation": 0.25,
    "size": 0.1,
    "shift": 0.25,
    "seed": 0,
}
# The data set is ordered by writer: with a cut, not a shuffle, most evaluation images come from writers never seen in training.
TRAINING_IMAGES = 1200
CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 128
EVALUATION_BATCH = 199
TRAINING_SEED = 1000
"""Added to the number of the epoch."""


class Block(nn.Module):
    """Two 3x3 convolutions and a residual add; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, h, w]` to `[n, outputs, h / stride, w / stride]`."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network for 8x8 images: nine convolutions of `width` to `4 * width` channels and one linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block1 = Block(width, width, 1)
        self.block2 = Block(width, 2 * width, 2)
        self.block3 = Block(2 * width, 4 * width, 1)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[n, 1, 8, 8]` in 0..1 to logits `[n, 10]`."""
        x = functional.relu(self.bn(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Digits:
    """The first 1,200 images train the network, 512 of them calibrate and 688 fine-tune; the other 597 evaluate."""

    name = "digits"
    metric_name = "top-1"

    def __init__(self) -> None:
        digits = load_digits()
        self._images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        self._labels = torch.tensor(digits.target, dtype=torch.int64)

    def model(self) -> nn.Module:
        """Return the network, trained on first use (seconds on a CPU), later from the cache."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RECIPE["seed"])
            return trained(self.name, DigitsNet(int(RECIPE["width"])), RECIPE, self._train, threads=1)

    def calibration(self) -> list[Batch]:
        """Return 512 training images, spread evenly over the training part, in batches of 128."""
        return self._batches(_calibrating(), CALIBRATION_BATCH)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Yield the 688 training images that do not calibrate, distorted at random, in batches of 64."""
        generator = torch.Generator().manual_seed(TRAINING_SEED + epoch)
        kept = torch.ones(TRAINING_IMAGES, dtype=torch.bool)
        kept[_calibrating()] = False
        images = kept.nonzero()[:, 0]
        for part in images[torch.randperm(len(images), generator=generator)].split(int(RECIPE["batch"])):
            yield Batch((_distorted(self._images[part], generator),), self._labels[part])

    def evaluation(self) -> list[Batch]:
        """Return the 597 held-out images in batches of 199."""
        return self._batches(torch.arange(TRAINING_IMAGES, len(self._labels)), EVALUATION_BATCH)

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
        steps = TRAINING_IMAGES // size
        optimizer = torch.optim.SGD(
            model.parameters(), lr=RECIPE["learning_rate"], momentum=0.9, nesterov=True, weight_decay=RECIPE["weight_decay"]
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["learning_rate"], total_steps=epochs * steps)
        model.train()
        for _ in range(epochs):
            order = torch.randperm(TRAINING_IMAGES)
            for part in order[: steps * size].split(size):
                optimizer.zero_grad()
                output = model(_distorted(self._images[part]))
                functional.cross_entropy(output, self._labels[part], label_smoothing=RECIPE["label_smoothing"]).backward()
                optimizer.step()
                schedule.step()


def _calibrating() -> Tensor:
    return torch.arange(CALIBRATION_IMAGES) * TRAINING_IMAGES // CALIBRATION_IMAGES


def _distorted(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn, scale and shift every image at random: 1,200 images of thirteen writers are few."""
    count = len(images)
    angle = RECIPE["rotation"] * (2 * torch.rand(count, generator=generator) - 1)
    size = 1 + RECIPE["size"] * (2 * torch.rand(count, generator=generator) - 1)
    shift = RECIPE["shift"] * (2 * torch.rand(count, 2, generator=generator) - 1)
    row_x = torch.stack([size * angle.cos(), -size * angle.sin(), shift[:, 0]], 1)
    row_y = torch.stack([size * angle.sin(), size * angle.cos(), shift[:, 1]], 1)
    grid = functional.affine_grid(torch.stack([row_x, row_y], 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@register("digits")
def digits(data: Path | None, weights: Path | None) -> Task:
    """Make the task; it brings its own data and weights, so a path is a mistake."""
    for option, path in (("--data", data), ("--weights", weights)):
        if path is not None:
            raise UserError(f"task digits takes no {option} ({path}): leave it out, the data come with scikit-learn")
    return Digits()
