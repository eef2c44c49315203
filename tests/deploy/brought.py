"""Networks as users bring them: depthwise blocks, transformers, several inputs and outputs, concatenated branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Depthwise(nn.Module):
    """Inverted residual blocks with HardSwish, as in MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.expand = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.project = nn.Conv2d(32, 16, 1)
        self.down = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.point = nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        x = F.relu(self.point(F.relu(self.down(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class VitBlock(nn.Module):
    """Patches, a class token and one pre-norm block; 16 channels a head, with 8 no runtime fuses attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 64, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 64))
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)
        self.fc1, self.fc2 = nn.Linear(64, 128), nn.Linear(128, 64)
        self.head = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.heads(self.qkv(self.norm1(x)))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0])

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values as `[n, heads, tokens, width]`."""
        return x.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class ChunkedVitBlock(VitBlock):
    """Queries, keys and values are chunks of the last axis, each of which becomes heads."""

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values as `[n, heads, tokens, width]`."""
        return tuple(part.unflatten(-1, (4, -1)).transpose(1, 2) for part in x.chunk(3, -1))


class Encoder(nn.Module):
    """Two of torch's own encoder layers behind an embedding of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=first) for first in (True, False)
        )
        self.head = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class CrossAttention(nn.Module):
    """torch's MultiheadAttention with a query of another length than key and value: two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 16)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        y, _ = self.attention(query, memory, memory, need_weights=False)
        return self.head(self.norm(query + y).mean(1))


class ImageAndVector(nn.Module):
    """An image and a vector of measurements, joined by a concat; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.vector = nn.Linear(6, 16)
        self.both = nn.Linear(32, 32)
        self.classes, self.box = nn.Linear(32, 16), nn.Linear(32, 4)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv2(F.relu(self.conv1(image)))).mean((2, 3))
        x = F.relu(self.both(torch.cat([x, F.relu(self.vector(vector))], 1)))
        return self.classes(x), self.box(x)


class Inception(nn.Module):
    """Branches of several kernels and a pool, concatenated, then read by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.one, self.three = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, 1, 1)
        self.reduce, self.five = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 5, 1, 2)
        self.pooled = nn.Conv2d(16, 8, 1)
        self.merge = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        branches = [
            self.one(x),
            self.three(x),
            self.five(F.relu(self.reduce(x))),
            self.pooled(F.max_pool2d(x, 3, 1, 1)),
        ]
        x = F.relu(self.merge(torch.cat([F.relu(branch) for branch in branches], 1)))
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


class Dense(nn.Module):
    """Every convolution reads all results before it, as in DenseNet, with BatchNorm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(16 + 8 * i, 8, 3, 1, 1) for i in range(3))
        self.head = nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.relu(x).mean((2, 3)))


class Pools(nn.Module):
    """Convolutions with a max-pool, an average pool, a flatten and a concat of the same tensor between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(3, 16, 3, 1, 1),
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.Conv2d(16, 16, 3, 1, 1),
        )
        self.head = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.avg_pool2d(F.relu(self.second(x)), 2)
        return self.head(F.max_pool2d(F.relu(self.third(x)), 2).flatten(1))


class Volumes(nn.Module):
    """3-D convolutions of each kind over a short film, with a skip and pools between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv3d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm3d(16)
        self.depthwise = nn.Conv3d(16, 16, (1, 3, 3), 1, (0, 1, 1), groups=16)
        self.grouped = nn.Conv3d(16, 32, 3, (1, 2, 2), 1, groups=4)
        self.point = nn.Conv3d(32, 32, 1)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool3d(x + F.relu(self.depthwise(x)), 2)
        x = F.relu(self.point(F.relu(self.grouped(x))))
        return self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "depthwise": (Depthwise, ((3, 16, 16),)),
    "vit": (VitBlock, ((3, 16, 16),)),
    "chunked-vit": (ChunkedVitBlock, ((3, 16, 16),)),
    "encoder": (Encoder, ((6, 8),)),
    "cross-attention": (CrossAttention, ((5, 64), (7, 64))),
    "image-and-vector": (ImageAndVector, ((3, 8, 8), (6,))),
    "inception": (Inception, ((3, 8, 8),)),
    "dense": (Dense, ((3, 8, 8),)),
    "pools": (Pools, ((3, 16, 16),)),
    "volumes": (Volumes, ((3, 4, 12, 12),)),
}
"""Name -> class, and the shape of one sample of every input."""
