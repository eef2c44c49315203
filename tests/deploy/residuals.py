"""The published residual networks by their blocks, at any width, with random weights: what is asked is where they are
quantised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class _Basic(nn.Module):
    """He et al., arXiv 1512.03385, figure 5 left."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(inputs, width, 3, stride), _conv(width, width, 3)
        self.downsample = _conv(inputs, width, 1, stride) if stride != 1 or inputs != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(x))


class _Bottleneck(nn.Module):
    """He et al., figure 5 right, with the stride in the middle."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            _conv(inputs, width, 1),
            _conv(width, width, 3, stride),
            _conv(width, 4 * width, 1),
        )
        self.downsample = _conv(inputs, 4 * width, 1, stride) if stride != 1 or inputs != 4 * width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))) + self.downsample(x))


class ResNet(nn.Module):
    """He et al., table 1, for images of any size; `adds` is how many residual adds it has."""

    def __init__(self, block: type[_Basic | _Bottleneck], depths: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv(3, width, 7, 2)
        blocks: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(depths):
            for number in range(depth):
                blocks.append(block(inputs, width << stage, 2 if stage and not number else 1))
                inputs = (width << stage) * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.adds = len(blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


class _Inverted(nn.Module):
    """An inverted residual block: MobileNetV2's, or EfficientNet's with squeeze-and-excitation; the projection is
    linear.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expand: int, act: type[nn.Module], squeeze: int
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expand = nn.Sequential(_conv(inputs, hidden, 1), act()) if expand != 1 else nn.Identity()
        self.depthwise = nn.Sequential(_conv(hidden, hidden, kernel, stride, hidden), act())
        self.gate = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, inputs // squeeze, 1), act(),
                nn.Conv2d(inputs // squeeze, hidden, 1), nn.Sigmoid()
            )
            if squeeze
            else None
        )  # fmt: skip
        self.project = _conv(hidden, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.project(y)
        return x + y if self.adds else y


@dataclass(frozen=True)
class _Stage:
    expand: int
    outputs: int
    depth: int
    stride: int
    kernel: int = 3


_MOBILE = (
    _Stage(1, 16, 1, 1), _Stage(6, 24, 2, 2), _Stage(6, 32, 3, 2), _Stage(6, 64, 4, 2), _Stage(6, 96, 3, 1),
    _Stage(6, 160, 3, 2), _Stage(6, 320, 1, 1),
)  # fmt: skip
"""Sandler et al., arXiv 1801.04381, table 2."""
_EFFICIENT = (
    _Stage(1, 16, 1, 1), _Stage(6, 24, 2, 2), _Stage(6, 40, 2, 2, 5), _Stage(6, 80, 3, 2), _Stage(6, 112, 3, 1, 5),
    _Stage(6, 192, 4, 2, 5), _Stage(6, 320, 1, 1),
)  # fmt: skip
"""Tan and Le, arXiv 1905.11946, table 1 (B0)."""


class Inverted(nn.Module):
    """MobileNetV2, or EfficientNet-B0 with squeeze-and-excitation of a quarter and SiLU; `adds` is how many residual
    adds it has.
    """

    def __init__(
        self, stages: tuple[_Stage, ...], act: type[nn.Module], squeeze: int, scale: int, classes: int
    ) -> None:
        super().__init__()
        inputs = max(32 // scale, 8)
        self.stem = nn.Sequential(_conv(3, inputs, 3, 2), act())
        blocks: list[_Inverted] = []
        for stage in stages:
            outputs = max(stage.outputs // scale // 8 * 8, 8)
            for number in range(stage.depth):
                stride = 1 if number else stage.stride
                blocks.append(_Inverted(inputs, outputs, stage.kernel, stride, stage.expand, act, squeeze))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.adds = sum(block.adds for block in blocks)
        last = 1280 // scale
        self.last = nn.Sequential(_conv(inputs, last, 1), act())
        self.head = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


NETWORKS: dict[str, Callable[[int, int], ResNet | Inverted]] = {
    "resnet18": lambda scale, stages: ResNet(_Basic, (2, 2, 2, 2)[:stages], 64 // scale, 1000 // scale),
    "resnet50": lambda scale, stages: ResNet(_Bottleneck, (3, 4, 6, 3)[:stages], 64 // scale, 1000 // scale),
    "mobilenetv2": lambda scale, stages: Inverted(_MOBILE[:stages], nn.ReLU6, 0, scale, 1000 // scale),
    "efficientnet-b0": lambda scale, stages: Inverted(_EFFICIENT[:stages], nn.SiLU, 4, scale, 1000 // scale),
}
"""Name -> how to make its first stages (7 are all of any) with all widths divided by a scale."""
