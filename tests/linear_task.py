"""Two linear layers: 16 inputs, which 12 does not divide, and 36, which 8 does not divide."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from calib.task import Batch

BLOCKS = (8, 12)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 36), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.relu(self.first(x)))
        return result


class Two:
    name = "two"
    metric_name = "agreement"

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Network().eval()

    def calibration(self) -> list[Batch]:
        return self._batches(1, 8)

    def evaluation(self) -> list[Batch]:
        return self._batches(2, 4)

    def _batches(self, seed: int, count: int) -> list[Batch]:
        generator, model = torch.Generator().manual_seed(seed), self.model()
        inputs = [torch.randn(16, 16, generator=generator) for _ in range(count)]
        with torch.no_grad():
            return [Batch((x,), model(x).argmax(1)) for x in inputs]

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).float()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none")


def task(data: Path | None = None, weights: Path | None = None) -> Two:
    del data, weights
    return Two()


def formats(*types: str) -> str:
    """Every type with every length of blocks, as `--formats` takes them."""
    return ",".join(f"w{each}a16b{block}" for each in types for block in BLOCKS)
