"""A convolutional and a ViT-shaped network, and plans that mix FP8, integers and half precision in them."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.deploy.networks import Exported, export
from tests.scratch import scratch

WIDTH = 64
TEXTS = {
    "convolutional": ("fp16", "fp8", "w8a8", "fp8", "fp8", "fp8", "wfp8a16", "fp8"),
    "transformer": ("fp8", "fp8", "w8a8", "fp8", "fp16", "wfp8a16", "fp8", "w8a8", "fp8"),
}
"""A format for each layer, in the order of the model."""


class Convolutional(nn.Module):
    """Convolutions with a residual add, a depthwise, a grouped and a strided one, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.a = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.b = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.c = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.grouped = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=4, stride=2)
        self.point = nn.Conv2d(WIDTH, WIDTH, 1)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        x = F.relu(self.depthwise(F.relu(self.c(x))))
        return self.head(self.point(F.relu(self.grouped(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, 4, WIDTH // 4)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Patches, two blocks of attention and MLP, as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.patch(x).flatten(2).transpose(1, 2))


@functools.cache
def exported(name: str) -> Exported:
    torch.manual_seed(0)
    model = {"convolutional": Convolutional, "transformer": Transformer}[name]()
    return export(model, torch.randn(8, 3, 16, 16), scratch())
