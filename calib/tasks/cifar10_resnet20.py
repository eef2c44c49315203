"""ResNet-20 on CIFAR-10, from the official python files and a file of weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from calib.errors import UserError
from calib.task import Task
from calib.tasks import register
from calib.tasks.cifar10 import Cifar10Task


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual add without parameters on the shortcut (option A of He et al. 2016, section
    4.2).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, inputs, h, w]` to `[n, outputs, h / stride, w / stride]`."""
        y = functional.relu(self.bn1(self.conv1(x)))
        shortcut = x
        if self.stride > 1:
            shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet20(nn.Module):
    """Nineteen 3x3 convolutions (16, 32 and 64 channels) and one linear layer; 0.27 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images `[n, 3, 32, 32]` to logits `[n, 10]`."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1), BasicBlock(outputs, outputs, 1)
        )


@register("cifar10-resnet20")
def cifar10_resnet20(data: Path | None, weights: Path | None) -> Task:
    """Make the task from the `cifar-10-batches-py` directory (or its parent) and a file of ResNet-20 weights. Without
    the directory there are no images: --data-free does without.
    """
    if weights is None:
        raise UserError("task cifar10-resnet20 needs --weights: a .safetensors file or a torch checkpoint of ResNet-20")
    return Cifar10Task("cifar10-resnet20", ResNet20(), data, weights)
