"""The language models that `language.py` measures: their task with the calibration data of a seed, and the blocks of
their layers.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from calib.tasks.language import LanguageTask
from examples import language, shakespeare


class Model(NamedTuple):
    """`task(data, weights, seed)`; `blocks` are inputs of a block, the first that divides those of a layer is taken;
    `record` is the name of the record.
    """

    task: Callable[[Path, Path | None, int], LanguageTask]
    blocks: tuple[int, ...]
    record: str


def stories(data: Path, weights: Path | None, seed: int) -> LanguageTask:
    """Return the task of `examples/language.py`; a seed but 0 shuffles the stories that calibrate."""
    found = language.Stories(data, weights or data / "stories260k.safetensors")
    if seed:
        random.Random(seed).shuffle(found.others)
    return found.task()


def plays(data: Path, weights: Path | None, seed: int) -> LanguageTask:
    """Return the task of `examples/shakespeare.py`; a seed but 0 shuffles the pieces that calibrate."""
    found = shakespeare.Text(data, weights)
    if seed:
        random.Random(seed).shuffle(found.calibrating)
    return found.task()


MODELS = {
    "stories260k": Model(stories, (32, 43), "language"),
    "shakespeare": Model(plays, (128,), "language_shakespeare"),
}
