"""The architecture of Llama in any size: a causal decoder whose embedding is its head too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON, BASE = 1e-5, 10_000.0


class Sizes(NamedTuple):
    """The numbers that name a network: `heads / key_heads` heads share keys and values."""

    vocabulary: int
    width: int
    hidden: int
    depth: int
    heads: int
    key_heads: int
    context: int

    @property
    def head(self) -> int:
        """Return the features of one head."""
        return self.width // self.heads


class Norm(nn.Module):
    """`nn.RMSNorm` with a division in place of a product with the reciprocal: ONNX Runtime makes one kernel of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., width]` to the same shape."""
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * self.weight


class Block(nn.Module):
    """Attention in which some heads share keys and values, and a gated layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.attention_norm, self.ffn_norm = Norm(width), Norm(width)
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, sizes.key_heads * sizes.head, bias=False) for _ in range(2))
        self.w1, self.w3 = (nn.Linear(width, sizes.hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(sizes.hidden, width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Map `[n, t, width]` to the same shape."""
        n, length, width = x.shape
        sizes = self.sizes
        y = self.attention_norm(x)
        # [n, t, heads * size] -> [n, heads, t, size]
        q, k, v = (part(y).view(n, length, -1, sizes.head).transpose(1, 2) for part in (self.wq, self.wk, self.wv))
        q, k = rotated(q, cosines, sines), rotated(k, cosines, sines)
        k, v = (part.repeat_interleave(sizes.heads // sizes.key_heads, 1) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).reshape(n, length, width))
        y = self.ffn_norm(x)
        result: Tensor = x + self.w2(functional.silu(self.w1(y)) * self.w3(y))
        return result


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of `[n, heads, t, size]` by the angles `[t, size / 2]` of their place."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], -1).flatten(-2)


class Llama(nn.Module):
    """Blocks between an embedding and the product with its transpose."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tok_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = Norm(sizes.width)
        angles = torch.outer(torch.arange(sizes.context), BASE ** (-torch.arange(0, sizes.head, 2) / sizes.head))
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `[n, t]` to the logits `[n, t, vocabulary]` of the token behind each."""
        length = tokens.shape[1]
        x = self.tok_embeddings(tokens)
        for block in self.layers:
            x = block(x, self.cosines[:length], self.sines[:length])
        return functional.linear(self.norm(x), self.tok_embeddings.weight)
