"""Networks of `static.py` that no file of weights is needed for: an autoencoder and MobileNetV2."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.task import Batch

WIDTHS = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
_LATENT, _STEPS = 6, 300
_MOBILE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, width, depth, stride: Sandler et al., arXiv 1801.04381, table 2."""


def autoencoder() -> nn.Sequential:
    """MLPerf Tiny's: linear layers with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], WIDTHS[0]))


class Reconstruction:
    """The autoencoder, trained for a moment on waves of a few frequencies; the metric is the error it leaves."""

    name = "autoencoder"
    metric_name = "negative squared error"

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._mixing = torch.randn(_LATENT, WIDTHS[0]) / _LATENT**0.5
            self._network = autoencoder()
            optimizer = torch.optim.Adam(self._network.parameters(), 3e-3)
            for _ in range(_STEPS):
                (data,) = self._waves(128)
                optimizer.zero_grad()
                self.loss(self._network(data), data).mean().backward()
                optimizer.step()
            self._batches = [Batch(self._waves(64), None) for _ in range(24)]

    def _waves(self, count: int) -> tuple[Tensor]:
        return (torch.sin(torch.randn(count, _LATENT) @ self._mixing) + 0.1 * torch.randn(count, WIDTHS[0]),)

    def model(self) -> nn.Module:
        return copy.deepcopy(self._network).eval()

    def calibration(self) -> list[Batch]:
        return [Batch(each.inputs, each.inputs[0]) for each in self._batches[:8]]

    def evaluation(self) -> list[Batch]:
        return [Batch(each.inputs, each.inputs[0]) for each in self._batches[8:]]

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return -self.loss(output, target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(1)


class Inverted(nn.Module):
    """An inverted residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        expanded = [*_normed(inputs, hidden, 1), nn.ReLU6()] if expand > 1 else []
        depthwise = [*_normed(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*expanded, *depthwise, *_normed(hidden, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of full width."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        inputs = 32
        layers: list[nn.Module] = [*_normed(3, inputs, 3, 2), nn.ReLU6()]
        for expand, outputs, depth, stride in _MOBILE:
            for number in range(depth):
                layers.append(Inverted(inputs, outputs, 1 if number else stride, expand))
                inputs = outputs
        self.layers = nn.Sequential(*layers, *_normed(inputs, 1280, 1), nn.ReLU6())
        self.head = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class Faithful:
    """A network with random weights on smooth random images; the metric is the cosine to what the float network
    says.
    """

    metric_name = "cosine to float"

    def __init__(self, name: str, network: nn.Module, size: int, batches: int = 8) -> None:
        self.name, self._network = name, network
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            images = [_smooth(8, size) for _ in range(batches)]
            network.train()  # BatchNorm with the statistics of the images, as training would leave it
            for each in images:
                network(each)
            network.eval()
            self._batches = [Batch((each,), network(each)) for each in images]

    def model(self) -> nn.Module:
        return copy.deepcopy(self._network)

    def calibration(self) -> list[Batch]:
        return self._batches[: len(self._batches) // 2]

    def evaluation(self) -> list[Batch]:
        return self._batches[len(self._batches) // 2 :]

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cosine_similarity(output.flatten(1), target.flatten(1), dim=1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 1 - self.metric(output, target)


def autoencoder_task(data: Path | None, weights: Path | None) -> Reconstruction:  # noqa: ARG001 - it brings its own
    return Reconstruction()


def mobilenetv2_task(data: Path | None, weights: Path | None) -> Faithful:  # noqa: ARG001 - it brings its own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Faithful("mobilenetv2", MobileNetV2(), 224)


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def _smooth(count: int, size: int) -> Tensor:
    coarse = torch.randn(count, 3, size // 16, size // 16)
    return functional.interpolate(coarse, (size, size), mode="bilinear") + 0.2 * torch.randn(count, 3, size, size)
