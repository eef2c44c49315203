"""The network of `examples/detection.py`: FastestDet (github.com/dog-qiuqiu/FastestDet)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 80


def normed(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False, relu: bool = True
) -> list[nn.Module]:
    """Return a convolution without a bias, its BatchNorm, and ReLU."""
    groups = inputs if depthwise else 1
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else [])]


def named(name: str, *parts: nn.Module) -> nn.Sequential:
    """Return the parts as one module that is called so in the file of weights."""
    return nn.Sequential(OrderedDict({name: nn.Sequential(*parts)}))


class Shuffle(nn.Module):
    """A ShuffleNetV2 block. With stride 1 the odd channels are worked on and the even ones pass; with stride 2 a second
    branch shrinks the input.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.branch_main = nn.Sequential(*normed(width, width, 1),
                                         *normed(width, width, 3, stride, depthwise=True, relu=False),
                                         *normed(width, width, 1))  # fmt: skip
        shrink = [*normed(width, width, 3, 2, depthwise=True, relu=False), *normed(width, width, 1)]
        self.branch_proj = nn.Sequential(*shrink) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, c, h, w]` to the same shape, or with stride 2 to `[n, 2c, h/2, w/2]`."""
        if self.branch_proj is not None:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        n, channels, height, width = x.shape
        pairs = x.reshape(n, channels // 2, 2, height, width)
        return torch.cat([pairs[:, :, 0], self.branch_main(pairs[:, :, 1])], 1)


class Backbone(nn.Module):
    """ShuffleNetV2 with three stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*normed(3, 24, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(Shuffle(width, 2), *(Shuffle(width, 1) for _ in range(more)))
            for width, more in ((24, 3), (48, 7), (96, 3))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs of the stages, at an eighth, a sixteenth and a thirty-second of the size."""
        low = self.stage2(self.maxpool(self.first_conv(x)))
        middle = self.stage3(low)
        return low, middle, self.stage4(middle)


class Pyramid(nn.Module):
    """One, two and three depthwise convolutions side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.Conv1x1 = named("conv1x1", *normed(inputs, width, 1))
        self.S1, self.S2, self.S3 = (
            nn.Sequential(*(part for _ in range(n) for part in normed(width, width, 5, depthwise=True)))
            for n in (1, 2, 3)
        )
        self.output = nn.Sequential(*normed(3 * width, width, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, h, w]` to `[n, width, h, w]`."""
        x = self.Conv1x1(x)
        return functional.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class Head(nn.Module):
    """Objectness, box and classes of each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1x1 = named("conv1x1", *normed(width, width, 1))
        self.obj_layers, self.reg_layers, self.cls_layers = (
            named("conv5x5", *normed(width, width, 5, depthwise=True), *normed(width, outputs, 1, relu=False))
            for outputs in (1, 4, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, width, h, w]` to `[n, 5 + classes, h, w]`."""
        x = self.conv1x1(x)
        return torch.cat([self.obj_layers(x).sigmoid(), self.reg_layers(x), self.cls_layers(x).softmax(1)], 1)


class FastestDet(nn.Module):
    """A detector with one head: each cell of 16 x 16 pixels tells of one object. Names are those of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.SPP, self.detect_head = Backbone(), Pyramid(336, 96), Head(96)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.avg_pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[n, 3, h, w]`, blue first, in 0..1, to `[n, 85, h/16, w/16]`: objectness, box, classes."""
        low, middle, high = self.backbone(x)
        found: Tensor = self.detect_head(self.SPP(torch.cat([self.avg_pool(low), middle, self.upsample(high)], 1)))
        return found
