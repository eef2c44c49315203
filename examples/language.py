"""A small language model and its nats per token: `smpq run --task examples.language:task --data D --weights W`.

The architecture of Llama with 260,000 parameters (github.com/karpathy/llama2.c). The folder D has `tinystories.txt`,
stories with `<|endoftext|>` between them, and `tok512.json`: `tokens`, a list of bytes in hexadecimal and the score of a
merge. W is a file of the weights.

The figure is a mean over tokens, not over stories, which differ in length: hence `records` and `metric_of`.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.errors import UserError
from calib.files.weights import load_weights, restore
from calib.task import Batch

VOCABULARY, WIDTH, HIDDEN, DEPTH, HEADS, KEY_HEADS, CONTEXT = 512, 64, 172, 5, 8, 4, 512
EPSILON, BASE = 1e-5, 10_000.0
BOS, FIRST_BYTE = 1, 3
STORIES, CALIBRATION_ROWS = 120, 32
BATCH = 4
NO_TOKEN = -100  # what cross_entropy ignores


class Block(nn.Module):
    """Attention in which two heads share keys and values, and a gated layer."""

    def __init__(self) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.attention_norm, self.ffn_norm = nn.RMSNorm(WIDTH, EPSILON), nn.RMSNorm(WIDTH, EPSILON)
        self.wq, self.wo = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.wk, self.wv = (nn.Linear(WIDTH, KEY_HEADS * size, bias=False) for _ in range(2))
        self.w1, self.w3 = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Map `[n, t, width]` to the same shape."""
        n, length, _ = x.shape
        y = self.attention_norm(x)
        # [n, t, heads * size] -> [n, heads, t, size]
        q, k, v = (part(y).view(n, length, -1, WIDTH // HEADS).transpose(1, 2) for part in (self.wq, self.wk, self.wv))
        q, k = rotated(q, cosines, sines), rotated(k, cosines, sines)
        k, v = (part.repeat_interleave(HEADS // KEY_HEADS, 1) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).reshape(n, length, WIDTH))
        y = self.ffn_norm(x)
        result: Tensor = x + self.w2(functional.silu(self.w1(y)) * self.w3(y))
        return result


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of `[n, heads, t, size]` by the angles `[t, size / 2]` of their place."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], -1).flatten(-2)


class Llama(nn.Module):
    """Five blocks; the embedding is the head too."""

    cosines: Tensor
    sines: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.RMSNorm(WIDTH, EPSILON)
        size = WIDTH // HEADS
        angles = torch.outer(torch.arange(CONTEXT), BASE ** (-torch.arange(0, size, 2) / size))
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `[n, t]` to the logits `[n, t, vocabulary]` of the token behind each."""
        length = tokens.shape[1]
        x = self.tok_embeddings(tokens)
        for block in self.layers:
            x = block(x, self.cosines[:length], self.sines[:length])
        return functional.linear(self.norm(x), self.tok_embeddings.weight)


class Tokenizer:
    """Byte pairs: of all neighbours that make a token, the pair with the highest score is merged first."""

    def __init__(self, path: Path) -> None:
        try:
            tokens = json.loads(path.read_text(encoding="utf-8"))["tokens"]
            self._ids = {bytes.fromhex(text): number for number, (text, _) in enumerate(tokens)}
            self._scores = [float(score) for _, score in tokens]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read {path} ({error}): it holds the tokens of the model, see --data") from error
        self._word = functools.cache(self._merged)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with the mark of a beginning."""
        # No token has a space behind its first byte, so each word with its space is merged by itself.
        return [BOS, *(number for word in text.split(" ") for number in self._word(" " + word))]

    def _merged(self, word: str) -> tuple[int, ...]:
        parts = [letter.encode() for letter in word]
        found: list[tuple[float, int]]
        while found := [
            (self._scores[self._ids[one + two]], -place)
            for place, (one, two) in enumerate(itertools.pairwise(parts))
            if one + two in self._ids
        ]:
            place = -max(found)[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        known = [[self._ids[part]] if part in self._ids else [byte + FIRST_BYTE for byte in part] for part in parts]
        return tuple(number for numbers in known for number in numbers)


class Language:
    """The first 120 stories are evaluated, the text behind them calibrates."""

    name = "stories260k"
    metric_name = "minus nats per token"
    metric_point = 0.01  # a budget drop=0.5 is then 0.005 nats

    def __init__(self, data: Path, weights: Path) -> None:
        self._weights, self.tokenizer = weights, Tokenizer(data / "tok512.json")
        try:
            text = (data / "tinystories.txt").read_text(encoding="utf-8", errors="ignore")
        except OSError as error:
            raise UserError(f"cannot read {data / 'tinystories.txt'} ({error}): see --data") from error
        self._stories = [story.strip() for story in text.split("<|endoftext|>")]

    def model(self) -> nn.Module:
        """Return the trained network."""
        model = Llama()
        # the file names a layer where the module names its weight
        weights = {f"{name}.weight": tensor for name, tensor in load_weights(self._weights).items()}
        restore(model, weights, self._weights)
        return model.eval()

    def calibration(self) -> list[Batch]:
        """Return 32 rows of the later stories, one behind the other without padding, which would count as text."""
        row: list[int] = []
        for story in self._stories[STORIES:]:
            row += self.tokenizer.encode(story)
            if len(row) > CALIBRATION_ROWS * CONTEXT:
                break
        else:
            raise UserError("tinystories.txt is too short: there is not enough behind the first 120 stories")
        return _batches([row[start : start + CONTEXT + 1] for start in range(0, CALIBRATION_ROWS * CONTEXT, CONTEXT)])

    def evaluation(self) -> list[Batch]:
        """Return a story a row, at most 512 tokens of it."""
        return _batches([self.tokenizer.encode(story)[:CONTEXT] for story in self._stories[:STORIES]])

    def records(self, output: Tensor, target: Tensor) -> list[tuple[float, int]]:
        """Return nats and tokens of each row."""
        return list(zip(_nats(output, target).sum(1).tolist(), (target != NO_TOKEN).sum(1).tolist(), strict=True))

    def metric_of(self, records: Sequence[tuple[float, int]]) -> float:
        """Return the nats per token of all rows, with a minus: higher is better."""
        return -sum(nats for nats, _ in records) / sum(tokens for _, tokens in records)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the nats per token `[n]` of each row."""
        return _nats(output, target).sum(1) / (target != NO_TOKEN).sum(1)


def task(data: Path | None, weights: Path | None) -> Language:
    """Make the task; name it `examples.language:task`."""
    if data is None or weights is None:
        raise UserError("this task needs --data, a folder with tinystories.txt and tok512.json, and --weights")
    return Language(data, weights)


def _nats(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.transpose(1, 2), target, reduction="none", ignore_index=NO_TOKEN)


def _batches(rows: Sequence[Sequence[int]]) -> list[Batch]:
    """Return rows and, as targets, the same one further, padded to the context: what is behind a token changes nothing."""
    inputs = torch.zeros(len(rows), CONTEXT, dtype=torch.int64)
    targets = torch.full((len(rows), CONTEXT), NO_TOKEN)
    for index, row in enumerate(rows):
        inputs[index, : len(row[:-1])] = torch.tensor(row[:-1])
        targets[index, : len(row[1:])] = torch.tensor(row[1:])
    return [Batch((x,), y) for x, y in zip(inputs.split(BATCH), targets.split(BATCH), strict=True)]
