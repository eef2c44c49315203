"""The evaluation data of a task, read anew each time it is gone through: one batch of it is in memory."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from calib.batches import add_to_hash
from calib.data import call_task, each_batch
from calib.errors import UserError
from calib.sizes import InputSizes
from calib.task import Batch, Task

_GOLDEN = (math.sqrt(5) - 1) / 2
_VALUES_OF_ONE = 256
"""Of each sample, about, that are compared."""


def check_first_batch(task: Task, sizes: InputSizes) -> None:
    """Raise UserError where the first evaluation batch is none, or has sizes that the engine does not take:
    before hours of search, not after.
    """
    next(_checked(task, sizes))


def _checked(task: Task, sizes: InputSizes) -> Iterator[Batch]:
    batches = call_task(task, "evaluation")
    if batches is None:
        raise UserError(f"the task {task.name} gives no evaluation data (evaluation() returns None)")
    return each_batch(batches, "evaluation", sizes)


class Evaluation:
    """The evaluation batches, each with a number: its place in an order of which any beginning is spread over all of
    them.

    Memory does not grow with the number of batches. Where they are not the same the next time is a UserError: the size
    of each and values of all its samples are compared.
    """

    def __init__(self, task: Task, sizes: InputSizes) -> None:
        """Go through the batches once, and check each as `calib.data.each_batch` does; `sizes` are those that the
        engine takes.
        """
        self._task = task
        self._marks = list(map(_mark, _checked(task, sizes)))
        order = spread_out(len(self._marks))
        self._number = {index: number for number, index in enumerate(order)}
        self._sizes = [self._marks[index][0] for index in order]

    def __len__(self) -> int:
        return len(self._marks)

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(self._sizes)

    @property
    def content(self) -> str:
        """A hash (sha256, hex) of values from all samples and of the targets."""
        return hashlib.sha256(repr(self._marks).encode()).hexdigest()

    def count(self, samples: int) -> int:
        """Return how many batches, by number, have so many samples; all where there are fewer."""
        seen = 0
        for number, size in enumerate(self._sizes):
            seen += size
            if seen >= samples:
                return number + 1
        return len(self)

    def batches(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, Batch]]:
        """Yield number and batch of those from one number to before another, in the order of the data."""
        wanted = range(len(self))[start:end]
        index = 0  # enumerate() would keep a batch while the next one is made
        for batch in each_batch(call_task(self._task, "evaluation"), "evaluation"):
            if index >= len(self) or _mark(batch) != self._marks[index]:
                raise UserError(_OTHERS)
            if self._number[index] in wanted:
                yield self._number[index], batch
            index += 1
            del batch
        if index < len(self):
            raise UserError(_OTHERS)


_OTHERS = (
    "evaluation() gives other batches the second time: turn off shuffling and random augmentation, and let every call "
    "make a new iterator, or no stage could be compared with another"
)


def spread_out(count: int) -> list[int]:
    """Return the numbers below `count` in an order of which any beginning is spread over all of them; the first is 0.

    Data is often sorted, by class for example. The order is that of the multiples of the golden ratio modulo 1, which
    leave no large gap (the three-distance theorem).
    """
    return sorted(range(count), key=lambda index: index * _GOLDEN % 1)


def _mark(batch: Batch) -> tuple[int, int]:
    """Return how many samples a batch has, with a checksum of values from all of them, of the inputs and the target."""
    found = 0
    for tensor in (*batch.inputs, batch.target):
        if isinstance(tensor, Tensor) and tensor.numel():
            values = tensor.detach().reshape(len(tensor) if tensor.dim() else 1, -1)
            # an odd stride, so that the values are not all of one channel or column
            taken = values[:, :: max(values.shape[1] // _VALUES_OF_ONE, 1) | 1].cpu().contiguous()
            found = zlib.crc32(taken.view(torch.uint8).numpy().tobytes(), found)
    if not isinstance(batch.target, Tensor):
        digest = hashlib.sha256()
        add_to_hash(digest, batch.target)
        found = zlib.crc32(digest.digest(), found)
    return len(batch.inputs[0]), found
