"""A small vision transformer on CIFAR-10, from the official python files and a file of weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.task import Task
from calib.tasks import register
from calib.tasks.cifar10 import Cifar10Task
from calib.tasks.transformer import Block

WIDTH, DEPTH, HEADS, HIDDEN = 128, 6, 4, 2


class Cifar10Vit(nn.Module):
    """Two convolutions, 64 overlapping patches, six transformer blocks, the mean over the patches; 0.95 million
    parameters.

    The convolutions in front of the patches are those of Xiao et al. 2021 (arXiv 2106.14881).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.patch = nn.Conv2d(64, WIDTH, 4, 2, 1)
        self.position = nn.Parameter(torch.randn(1, 64, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, HIDDEN) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images `[n, 3, 32, 32]` to logits `[n, 10]`."""
        x = self.patch(self.stem(x)).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


@register("cifar10-vit")
def cifar10_vit(data: Path | None, weights: Path | None) -> Task:
    """Make the task from the `cifar-10-batches-py` directory (or its parent) and a file of weights, which
    `benchmarks/train_cifar10_vit.py` makes. Without the directory there are no images: --data-free does without.
    """
    if weights is None or not weights.exists():
        raise UserError(
            "task cifar10-vit needs --weights: make the file once, "
            f"`python benchmarks/train_cifar10_vit.py CIFAR10 {weights or 'cifar10-vit.safetensors'}` in a "
            "checkout of smpq"
        )
    return Cifar10Task("cifar10-vit", Cifar10Vit(), data, weights)
