"""The blocks of a vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention over `heads` parts of the width, with one linear layer for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, tokens, width]` to the same shape."""
        n, tokens, width = x.shape
        query, key, value = (
            self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))
        return projected


class Block(nn.Module):
    """Attention and a two-layer perceptron of `hidden` widths with GELU, each behind a LayerNorm and added to its
    input.
    """

    def __init__(self, width: int, heads: int, hidden: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden * width)
        self.fc2 = nn.Linear(hidden * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, tokens, width]` to the same shape."""
        x = x + self.attention(self.norm1(x))
        added: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return added
