"""Networks of published shapes with random weights: latency and tools do not ask what a network has learned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.task import Batch


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for 224x224 images."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = [64, 64, 128, 256, 512]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    BasicBlock(widths[i], widths[i + 1], 1 if i == 0 else 2),
                    BasicBlock(widths[i + 1], widths[i + 1], 1),
                )
                for i in range(4)
            )
        )
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(self.layers(x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """A ViT for 224x224 images in patches of 16, with a class token."""

    def __init__(self, width: int, depth: int, heads: int, classes: int = 1000) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.layers(x))[:, 0])


def resnet18() -> nn.Module:
    """11.7 million parameters; BatchNorm with the statistics of random images, as training would leave it."""
    model = _seeded(ResNet18)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, 224, 224))
    return model.eval()


def vit_tiny() -> nn.Module:
    """ViT-tiny with 6 layers: width 192, 3 heads."""
    return _seeded(lambda: VisionTransformer(192, 6, 3)).eval()


def vit_b() -> nn.Module:
    """ViT-B: width 768, 12 layers, 12 heads, 86 million parameters."""
    return _seeded(lambda: VisionTransformer(768, 12, 12)).eval()


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


class SelfLabelled:
    """A task of random images whose labels are what the float network says, so that accuracy is agreement with it."""

    metric_name = "agreement"

    def __init__(self, name: str, network: nn.Module, images: int = 32) -> None:
        self.name = name
        self._network = network
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            parts = torch.randn(2 * images, 3, 224, 224).split(8)
            self._batches = [Batch((part,), network(part).argmax(1)) for part in parts]

    def model(self) -> nn.Module:
        return copy.deepcopy(self._network)

    def calibration(self) -> list[Batch]:
        return self._batches[: len(self._batches) // 2]

    def evaluation(self) -> list[Batch]:
        return self._batches[len(self._batches) // 2 :]

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).float()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target, reduction="none")


def resnet18_task(data: Path | None, weights: Path | None) -> SelfLabelled:  # noqa: ARG001 - it brings its own
    return SelfLabelled("resnet18", resnet18())


def vit_tiny_task(data: Path | None, weights: Path | None) -> SelfLabelled:  # noqa: ARG001 - it brings its own
    return SelfLabelled("vit-tiny", vit_tiny())
