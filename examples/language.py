"""A small language model and its nats per token: `smpq run --task examples.language:task --data D --weights W`.

The architecture of Llama with 260,000 parameters (github.com/karpathy/llama2.c). The folder D has `tinystories.txt`,
stories with `<|endoftext|>` between them, and `tok512.json`: `tokens`, a list of bytes in hexadecimal and the score of
a merge. W is a file of the weights. The first 120 stories are evaluated, the text behind them calibrates.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from calib.errors import UserError
from calib.files.weights import load_weights, restore
from calib.tasks.language import LanguageTask
from examples.llama import Llama, Sizes

SIZES = Sizes(vocabulary=512, width=64, hidden=172, depth=5, heads=8, key_heads=4, context=512)
BOS, FIRST_BYTE = 1, 3
STORIES, CALIBRATION_ROWS = 120, 32


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


class Stories:
    """The files of a folder, and the network."""

    def __init__(self, data: Path | None, weights: Path | None) -> None:
        if data is None or weights is None:
            raise UserError("this task needs --data, a folder with tinystories.txt and tok512.json, and --weights")
        self._weights, self.tokenizer = weights, Tokenizer(data / "tok512.json")
        try:
            text = (data / "tinystories.txt").read_text(encoding="utf-8", errors="ignore")
        except OSError as error:
            raise UserError(f"cannot read {data / 'tinystories.txt'} ({error}): see --data") from error
        stories = [story.strip() for story in text.split("<|endoftext|>")]
        self.evaluated, self.others = stories[:STORIES], stories[STORIES:]

    def restored(self, model: Llama) -> Llama:
        """Give a network the trained weights."""
        # the file names a layer where the module names its weight
        weights = {f"{name}.weight": tensor for name, tensor in load_weights(self._weights).items()}
        restore(model, weights, self._weights)
        return model.eval()

    def calibration(self) -> Iterator[list[int]]:
        """Return the tokens of the later stories."""
        return map(self.tokenizer.encode, self.others)

    def evaluation(self) -> Iterator[list[int]]:
        """Return a story a row, at most 512 tokens of it."""
        return (self.tokenizer.encode(story)[: SIZES.context] for story in self.evaluated)

    def task(self) -> LanguageTask:
        """Return the task without a cache."""
        return LanguageTask(
            "stories260k",
            lambda: self.restored(Llama(SIZES)),
            self.calibration,
            self.evaluation,
            SIZES.context,
            rows=CALIBRATION_ROWS,
        )


def task(data: Path | None, weights: Path | None) -> LanguageTask:
    """Make the task; name it `examples.language:task`."""
    return Stories(data, weights).task()
