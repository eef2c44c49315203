"""scikit-learn's digits with a small residual network: needs no download and trains in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.task import Task
from calib.tasks import register
from calib.tasks.digits_data import DISTORTION, DigitsTask, check_no_paths

# Wide enough that arithmetic, not call overhead, decides the latency of one image.
RECIPE = {
    "version": 1,
    "width": 48,
    "epochs": 8,
    "batch": 64,
    "learning_rate": 0.05,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    **DISTORTION,
    "seed": 0,
}


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


class Digits(DigitsTask):
    """The residual network, trained with SGD."""

    name = "digits"
    recipe = RECIPE

    def network(self) -> nn.Module:
        """Return the residual network."""
        return DigitsNet(int(RECIPE["width"]))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return SGD with Nesterov's momentum."""
        return torch.optim.SGD(
            model.parameters(),
            lr=RECIPE["learning_rate"],
            momentum=0.9,
            nesterov=True,
            weight_decay=RECIPE["weight_decay"],
        )


@register("digits")
def digits(data: Path | None, weights: Path | None) -> Task:
    """Make the task; it brings its own data and weights, so a path is a mistake."""
    check_no_paths("digits", data, weights)
    return Digits()
