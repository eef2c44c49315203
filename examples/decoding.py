"""The language model of `examples/language.py` with its cache as inputs and outputs: its engine writes token by token.

`smpq run --task examples.decoding:task --data D --weights W --target ort-cpu --budget latency=0.8x`, D and W as there.

The same can be done with any decoder (`calib.tasks.decoding`): keys and values of earlier tokens come in, those of the
new tokens go out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from calib.tasks.decoding import DecodingTask
from examples.language import SIZES, Stories
from examples.llama import Llama, Sizes

Pair = tuple[Tensor, Tensor]
"""Keys and values, or two tables of angles."""
HIDDEN = -1e9
"""What is added to the score of a place that a token does not see."""


class Decoder(Llama):
    """The weights of `Llama`. The first place of a cache is empty, so that none has length 0: no token sees it.

    One token is little work for each operator, so there are few of them and none copies the cache. Queries and keys are
    turned together; heads that share keys are rows of one product; products with the cache and with the new keys are
    apart; and each block has tensors of its own.
    """

    turned: Tensor
    crossed: Tensor
    swapped: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        signs = torch.tensor([-1.0, 1.0]).repeat(sizes.head // 2)
        scale = torch.ones(sizes.heads + sizes.key_heads, 1)
        scale[: sizes.heads] = sizes.head**-0.5  # of queries, in place of their products with keys
        buffers = {
            "turned": self.cosines.repeat_interleave(2, -1)[:, None] * scale,
            "crossed": (self.sines.repeat_interleave(2, -1) * signs)[:, None] * scale,
            "swapped": torch.arange(sizes.head).view(-1, 2).flip(1).flatten(),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, tokens: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Map new tokens `[n, t]`, and keys and values of each block in turn, `[n, key heads, 1 + p, size]` of `p`
        earlier tokens, to the logits `[n, t, vocabulary]` and keys and values `[n, key heads, t, size]` of the new
        ones.
        """
        length, past = tokens.shape[1], cache[0].shape[2] - 1
        places = torch.arange(past, past + length)
        earlier = torch.arange(-1, past + length)
        hidden = (earlier > places[:, None]) | (earlier < 0)
        mask = (hidden * HIDDEN).repeat(self.sizes.heads // self.sizes.key_heads, 1)
        turn = self.turned.index_select(0, places), self.crossed.index_select(0, places)
        x = self.tok_embeddings(tokens)
        made: list[Tensor] = []
        for number, block in enumerate(self.layers):
            x, new = self._attended(block, x, (cache[2 * number], cache[2 * number + 1]), turn, mask)
            made += new
        return functional.linear(self.norm(x), self.tok_embeddings.weight), *made

    def _attended(self, block: Any, x: Tensor, cache: Pair, turn: Pair, mask: Tensor) -> tuple[Tensor, Pair]:
        """Return what a block makes of `[n, t, width]`, and keys and values of these tokens."""
        (n, length, width), (_, _, _, _, heads, shared, _) = x.shape, self.sizes
        y = block.attention_norm(x)
        both = torch.cat([block.wq(y), block.wk(y)], -1).view(n, length, heads + shared, -1)
        both = both * turn[0] + both.index_select(-1, self.swapped) * turn[1]
        q, k = both.split([heads, shared], 2)
        k, v = k.transpose(1, 2), block.wv(y).view(n, length, shared, -1).transpose(1, 2)
        # [n, t, heads, size] -> [n, key heads, heads of it * t, size]
        rows = q.view(n, length, shared, heads // shared, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
        scores = torch.cat([rows @ part.transpose(2, 3) for part in (cache[0], k)], -1)
        shares = (scores + mask).softmax(-1)
        before, new = shares.split([cache[0].shape[2], length], -1)
        mixed = (before @ cache[1] + new @ v).view(n, shared, heads // shared, length, -1).permute(0, 3, 1, 2, 4)
        x = x + block.wo(mixed.reshape(n, length, width))
        y = block.ffn_norm(x)
        return x + block.w2(functional.silu(block.w1(y)) * block.w3(y)), (k, v)


def empty_cache(sizes: Sizes, rows: int) -> tuple[Tensor, ...]:
    """Return keys and values of no token, for each block."""
    return tuple(torch.zeros(rows, sizes.key_heads, 1, sizes.head) for _ in range(2 * sizes.depth))


def task(data: Path | None, weights: Path | None) -> DecodingTask:
    """Make the task; name it `examples.decoding:task`."""
    stories = Stories(data, weights)
    return DecodingTask(
        "stories260k-decoding",
        lambda: stories.restored(Decoder(SIZES)),
        stories.calibration,
        stories.evaluation,
        SIZES.context,
        lambda rows: empty_cache(SIZES, rows),
    )
