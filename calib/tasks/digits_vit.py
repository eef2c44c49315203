"""scikit-learn's digits with a small vision transformer: what a transformer has, in a network that trains in less than
a minute.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.task import Task
from calib.tasks import register
from calib.tasks.digits_data import DISTORTION, DigitsTask, check_no_paths
from calib.tasks.transformer import Block

# Wide enough that the linear layers, not what stands between them, decide the latency of one image.
RECIPE = {
    "version": 1,
    "width": 128,
    "depth": 3,
    "heads": 4,
    "epochs": 28,
    "batch": 64,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    **DISTORTION,
    "seed": 0,
}


class DigitsVit(nn.Module):
    """A vision transformer for 8x8 images: a convolution, 16 overlapping patches of 4x4, `depth` blocks, the mean over
    the patches.

    The convolution in front of the patches is that of Xiao et al. 2021 (arXiv 2106.14881): on 1,200 images it is worth
    3 points.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width // 2, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width // 2)
        self.patch = nn.Conv2d(width // 2, width, 4, 2, 1)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.2)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[n, 1, 8, 8]` in 0..1 to logits `[n, 10]`."""
        x = self.patch(functional.relu(self.bn(self.stem(x)))).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


class DigitsVitTask(DigitsTask):
    """The vision transformer, trained with AdamW."""

    name = "digits-vit"
    recipe = RECIPE

    def network(self) -> nn.Module:
        """Return the vision transformer."""
        return DigitsVit(*(int(RECIPE[part]) for part in ("width", "depth", "heads")))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(model.parameters(), lr=RECIPE["learning_rate"], weight_decay=RECIPE["weight_decay"])


@register("digits-vit")
def digits_vit(data: Path | None, weights: Path | None) -> Task:
    """Make the task; it brings its own data and weights, so a path is a mistake."""
    check_no_paths("digits-vit", data, weights)
    return DigitsVitTask()
