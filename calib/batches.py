"""Batches that are gone through several times, with memory that does not grow with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from calib.data import bytes_of, call_task, check_batches, each_batch, training_batches
from calib.errors import UserError
from calib.sizes import InputSizes
from calib.task import Batch, Task

_KEPT_MB = 256.0


class Batches(Sequence[Batch]):
    """The batches that a task's loader gives.

    1. They are kept in memory where all of them take at most 256 MB, or the memory limit if that is lower. Otherwise
       they are drawn from the loader each time they are gone through, and one is in memory.
    2. What is drawn again must be the same: a hash (sha256) of inputs and targets is compared batch by batch, and
       others are a UserError.
    3. An index or a slice draws all batches up to there: loop over them, or use `picked`, where several are wanted.

    `shapes` are those of each batch's inputs. `content` is a hash (sha256, hex) of all batches.
    """

    def __init__(
        self, loader: Iterable[Any], what: str, sizes: InputSizes | None = None, memory_mb: float | None = None
    ) -> None:
        """Go through the loader once, and check each batch as `calib.data.each_batch` does.

        `what` names the task's method in messages, `sizes` are those that the engine takes where they are known, and
        `memory_mb` is the memory limit.
        """
        self._loader, self._what = loader, what
        limit = min(_KEPT_MB, _KEPT_MB if memory_mb is None else memory_mb) * 2**20
        marks, shapes, kept, taken = list[bytes](), list[tuple[torch.Size, ...]](), list[Batch](), 0
        digest = hashlib.sha256()
        for batch in each_batch(loader, what, sizes):
            _add_batch(digest, batch)
            marks.append(digest.digest())
            shapes.append(tuple(tensor.shape for tensor in batch.inputs))
            taken += bytes_of(batch)
            if taken <= limit or not kept:  # the first one in any case
                kept.append(batch)
            elif len(kept) > 1:
                del kept[1:]
            del batch  # before the next one is made
        self._marks, self.shapes, self.content = marks, tuple(shapes), digest.hexdigest()
        self._first, self._kept = kept[0], kept if len(kept) == len(marks) else None

    @property
    def in_memory(self) -> bool:
        """Whether the batches are kept."""
        return self._kept is not None

    @property
    def counts(self) -> tuple[int, ...]:
        """How many samples each batch has."""
        return tuple(inputs[0][0] for inputs in self.shapes)

    def __len__(self) -> int:
        return len(self._marks)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._kept) if self._kept is not None else self._drawn()

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        wanted = range(len(self))[index]
        if isinstance(wanted, int):
            return self._first if wanted == 0 else picked(self, [wanted])[wanted]
        found = picked(self, wanted)
        return [found[number] for number in wanted]

    def _drawn(self) -> Iterator[Batch]:
        digest, index = hashlib.sha256(), 0  # enumerate() would keep a batch while the next one is made
        for batch in each_batch(self._loader, self._what):
            _add_batch(digest, batch)
            if index >= len(self) or digest.digest() != self._marks[index]:
                raise UserError(self._others(index))
            index += 1
            yield batch
            del batch
        if index < len(self):
            raise UserError(self._others(index))

    def _others(self, index: int) -> str:
        return (
            f"{self._what}() gives other batches when it is looped over again (batch {index} is the first that "
            "differs): turn off shuffling and random augmentation, or no result could be compared with another"
        )


def picked(batches: Iterable[Batch], numbers: Iterable[int]) -> dict[int, Batch]:
    """Return some batches by their number, from 0; looks at none behind the last of them."""
    wanted, found = set(numbers), dict[int, Batch]()
    for number, batch in enumerate(batches) if wanted else ():
        if number in wanted:
            found[number] = batch
        if len(found) == len(wanted):
            break
    return found


def samples_in(batches: Sequence[Batch]) -> int:
    """Return how many samples batches have."""
    return sum(batches.counts if isinstance(batches, Batches) else (len(batch.inputs[0]) for batch in batches))


def calibration_batches(loader: Iterable[Any], memory_mb: float | None = None) -> Batches:
    """Return the batches of a task's `calibration()`."""
    check_batches(loader)
    return Batches(loader, "calibration", memory_mb=memory_mb)


def selection_batches(task: Task, sizes: InputSizes, memory_mb: float | None = None) -> Batches | None:
    """Return the batches of a task's `selection()`; None where the task has none.

    They are held out: the model was not trained on them, and `evaluation()` does not have them. What may be lost is
    decided on them.
    """
    if getattr(task, "selection", None) is None:
        return None
    loader = call_task(task, "selection")
    check_batches(loader, what="selection")
    return Batches(loader, "selection", sizes, memory_mb)


def content_hash(batches: Iterable[Batch]) -> str:
    """Return the hash (sha256, hex) of the inputs and targets of batches: what `Batches.content` is."""
    digest = hashlib.sha256()
    for batch in batches:
        _add_batch(digest, batch)
    return digest.hexdigest()


def training_content(task: Task) -> str:
    """Return the hash (sha256, hex) of the first batch that is trained on: enough to tell other training data."""
    return content_hash([next(training_batches(task, 0))])


def add_to_hash(digest: Any, value: Any) -> None:
    """Add a value to a hash of `hashlib`: a tensor, an array, a plain value, or a list, tuple or dictionary of such.

    Anything else counts by its type alone.
    """
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if value.numel():
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        add_to_hash(digest, [part for key in value for part in (key, value[key])])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} of {len(value)}".encode())
        for part in value:
            add_to_hash(digest, part)
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        digest.update(f"{type(value).__name__} {value!r}\n".encode())
    else:
        digest.update(f"{type(value).__qualname__}\n".encode())


def _add_batch(digest: Any, batch: Batch) -> None:
    for part in (*batch.inputs, batch.target):
        add_to_hash(digest, part)
