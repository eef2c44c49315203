"""The language model of `examples/language.py` with its cache as inputs and outputs: an engine that writes text token by token.

`smpq run --task examples.decoding:task --data D --weights W --target ort-cpu --budget latency=0.8x`, D and W as there.

One network serves both halves of the work. The prompt is read with many tokens and an empty cache (prefill), and each
further token with one token and a cache that has grown (decode). Both sizes are free axes of one engine. What is timed is
the usual size of `--shape`, or the largest calibration sample, which here is one token behind a full cache.

The same can be done with any decoder: keys and values of earlier tokens come in, those of the new tokens go out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.errors import UserError
from calib.task import Batch
from examples.language import CONTEXT, DEPTH, HEADS, KEY_HEADS, WIDTH, Language, Llama, rotated

SIZE = WIDTH // HEADS
LENGTHS = ((256, 1), (1, CONTEXT), (64, 8), (CONTEXT, 1))
"""Places of the cache and new tokens, of the calibration batches in turn."""
ROWS = 8
"""Calibration rows of each of them."""

Cached = tuple[Tensor, Tensor, Tensor]
"""Logits `[n, t, vocabulary]`, and keys and values `[n, layers, key heads, t, size]` of the new tokens."""
Step = Callable[[Tensor, Tensor, Tensor], Cached]


class Decoder(Llama):
    """The weights of `Llama`. The first place of a cache is empty, so that none has length 0: no token sees it."""

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Cached:  # type: ignore[override]
        """Map new tokens `[n, t]` and the cache `[n, layers, key heads, 1 + p, size]` of `p` earlier tokens."""
        length, past = tokens.shape[1], keys.shape[3] - 1
        places = torch.arange(past, past + length)
        cosines, sines = self.cosines[places], self.sines[places]
        earlier = torch.arange(-1, past + length)
        seen = (earlier <= places[:, None]) & (earlier >= 0)
        x = self.tok_embeddings(tokens)
        made = []
        for number, block in enumerate(self.layers):
            x, new = attended(block, x, (keys[:, number], values[:, number]), (cosines, sines), seen)
            made.append(new)
        logits = functional.linear(self.norm(x), self.tok_embeddings.weight)
        return logits, torch.stack([key for key, _ in made], 1), torch.stack([value for _, value in made], 1)


def attended(
    block: Any, x: Tensor, cache: tuple[Tensor, Tensor], turn: tuple[Tensor, Tensor], seen: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return what a block makes of `[n, t, width]`, and keys and values `[n, key heads, t, size]` of these tokens."""
    n, length, _ = x.shape
    y = block.attention_norm(x)
    q, k, v = (part(y).view(n, length, -1, SIZE).transpose(1, 2) for part in (block.wq, block.wk, block.wv))
    q, k = rotated(q, *turn), rotated(k, *turn)
    keys, values = (
        torch.cat(pair, 2).repeat_interleave(HEADS // KEY_HEADS, 1) for pair in zip(cache, (k, v), strict=True)
    )
    mixed = functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
    x = x + block.wo(mixed.transpose(1, 2).reshape(n, length, WIDTH))
    y = block.ffn_norm(x)
    return x + block.w2(functional.silu(block.w1(y)) * block.w3(y)), (k, v)


def empty_cache(rows: int) -> tuple[Tensor, Tensor]:
    """Return keys and values of no token."""
    cache = torch.zeros(rows, DEPTH, KEY_HEADS, 1, SIZE)
    return cache, cache.clone()


def generate(step: Step, prompt: Tensor, count: int) -> Iterator[Tensor]:
    """Yield the logits `[n, vocabulary]` of `count` tokens behind a prompt `[n, t]`, each the most probable one."""
    keys, values = empty_cache(len(prompt))
    tokens = prompt
    for _ in range(count):
        logits, *made = step(tokens, keys, values)
        keys, values = torch.cat([keys, made[0]], 3), torch.cat([values, made[1]], 3)
        yield logits[:, -1]
        tokens = logits[:, -1:].argmax(-1)


class Decoding(Language):
    """The stories with a cache: calibrated in the middle of a text as well as on prompts, evaluated on whole stories."""

    name = "stories260k-decoding"

    def model(self) -> nn.Module:
        """Return the trained network."""
        model = Decoder()
        model.load_state_dict(super().model().state_dict())
        return model.eval()

    def calibration(self) -> list[Batch]:
        """Return batches of several lengths."""
        model = self.model()
        whole = super().calibration()
        rows, behind = torch.cat([batch.inputs[0] for batch in whole]), torch.cat([batch.target for batch in whole])
        found = []
        for number, (places, new) in enumerate(LENGTHS):
            part, past = slice(number * ROWS, (number + 1) * ROWS), places - 1
            cache = empty_cache(ROWS)
            if past:
                with torch.no_grad():
                    _, *made = model(rows[part, :past], *cache)
                cache = torch.cat([cache[0], made[0]], 3), torch.cat([cache[1], made[1]], 3)
            at = slice(past, past + new)
            found.append(Batch((rows[part, at].contiguous(), *cache), behind[part, at].contiguous()))
        return found

    def evaluation(self) -> list[Batch]:
        """Return whole stories, with an empty cache."""
        whole = super().evaluation()
        return [Batch((batch.inputs[0], *empty_cache(len(batch.inputs[0]))), batch.target) for batch in whole]

    def records(self, output: Any, target: Tensor) -> list[tuple[float, int]]:
        """Return nats and tokens of each row."""
        return super().records(output[0], target)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Return the nats per token `[n]` of each row."""
        return super().loss(output[0], target)

    def divergence(self, output: Any, float_output: Any) -> Tensor:
        """Return `[n]`, the divergence of the next tokens' distributions, the mean over the row."""
        ours, reference = (functional.log_softmax(each[0], -1) for each in (output, float_output))
        return (reference.exp() * (reference - ours)).sum(-1).mean(1)


def task(data: Path | None, weights: Path | None) -> Decoding:
    """Make the task; name it `examples.decoding:task`."""
    if data is None or weights is None:
        raise UserError("this task needs --data, a folder with tinystories.txt and tok512.json, and --weights")
    return Decoding(data, weights)
