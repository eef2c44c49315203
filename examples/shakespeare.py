"""A byte model of 3.2 million parameters: `smpq run --task examples.shakespeare:task --data TEXT --weights W`.

The blocks of `examples/llama.py`, wide enough for groups of 128 inputs. TEXT is a file of plain text; its last tenth is
held out. `benchmarks/train_language.py` trains the weights in about 17 minutes of one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from calib.errors import UserError
from calib.files.weights import load_weights, restore
from calib.tasks.decoding import DecodingTask
from calib.tasks.language import LanguageTask
from examples.decoding import Decoder, empty_cache
from examples.llama import Llama, Sizes

SIZES = Sizes(vocabulary=256, width=256, hidden=768, depth=4, heads=8, key_heads=4, context=256)
HELD_OUT = 10
"""A tenth of the text is not trained on."""
CALIBRATION_PIECES = 400
"""Pieces at the end of what was trained on, of which the first ones calibrate."""
EVALUATION_PIECES = 160
"""Pieces of what was held out that judge a model: 41,000 bytes."""


def read(path: Path) -> tuple[bytes, bytes]:
    """Return the text that is trained on, and what is held out."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error}): name a file of plain text, see --data") from error
    kept = len(text) - len(text) // HELD_OUT
    return text[:kept], text[kept:]


class Text:
    """A file of text, and the network."""

    def __init__(self, data: Path | None, weights: Path | None) -> None:
        if data is None or weights is None:
            raise UserError("this task needs --data, a file of plain text, and --weights")
        self._weights = weights
        trained, held_out = read(data)
        self.calibrating = pieces(trained)[-CALIBRATION_PIECES:]
        self.evaluated = pieces(held_out)[:EVALUATION_PIECES]

    def restored(self, model: Llama) -> Llama:
        """Give a network the trained weights."""
        restore(model, load_weights(self._weights), self._weights)
        return model.eval()

    def task(self) -> LanguageTask:
        """Return the task without a cache."""
        return LanguageTask(
            "shakespeare",
            lambda: self.restored(Llama(SIZES)),
            lambda: self.calibrating,
            lambda: self.evaluated,
            SIZES.context,
        )

    def decoding(self) -> DecodingTask:
        """Return the task with a cache."""
        return DecodingTask(
            "shakespeare-decoding",
            lambda: self.restored(Decoder(SIZES)),
            lambda: self.calibrating,
            lambda: self.evaluated,
            SIZES.context,
            partial(empty_cache, SIZES),
        )


def pieces(text: bytes) -> list[bytes]:
    """Return pieces with as many bytes to predict as the context has, each as if it were a document."""
    length = SIZES.context + 1
    return [text[start : start + length] for start in range(0, len(text), length)]


def task(data: Path | None, weights: Path | None) -> LanguageTask:
    """Make the task without a cache; name it `examples.shakespeare:task`."""
    return Text(data, weights).task()


def decoding(data: Path | None, weights: Path | None) -> DecodingTask:
    """Make the task with a cache; name it `examples.shakespeare:decoding`."""
    return Text(data, weights).decoding()
