"""How large the parts are that calibration batches are evaluated in."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from calib.errors import UserError
from calib.network.graph import TracedModel
from calib.network.units import Unit
from calib.task import Batch
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.incremental import bytes_per_sample
from smpq.value.rows import has_rows, rows_of

_SAMPLES_AT_ONCE = 32
"""At least; few enough that the activations of a small network stay in the cache: a third faster than batches of 128 on
a CPU.
"""
_SAMPLES_ON_A_GPU = 512
_DEFAULT_MEMORY_MB = 1024


def samples_at_once(fake_quantizer: FakeQuantizer, memory_mb: float | None, device: str = "cpu") -> int:
    """Return the size of the parts that batches are cut into: quick on this network, and within the memory limit.

    As many as make the activations outweigh the parameters, which are read anew for every part. UserError when not even
    one sample fits.
    """
    traced = fake_quantizer.traced
    activations = sum(
        traced.elements_of_one(node.meta["val"]) for node in traced.steps if isinstance(node.meta.get("val"), Tensor)
    )
    parameters = sum(tensor.numel() for tensor in traced.state.values())
    wanted = max(_SAMPLES_AT_ONCE if device == "cpu" else _SAMPLES_ON_A_GPU, parameters // max(activations, 1))
    if memory_mb is not None:
        check_memory_limit(traced, fake_quantizer.units, memory_mb)
    fitting = int((memory_mb or _DEFAULT_MEMORY_MB) * 2**20 / max(bytes_per_sample(traced, fake_quantizer.units), 1))
    return max(min(wanted, fitting), 1)


def check_memory_limit(traced: TracedModel, units: Sequence[Unit], memory_mb: float) -> None:
    """Raise UserError when not even the activations of one sample stay within the limit."""
    needed = bytes_per_sample(traced, units) / 2**20
    if needed > memory_mb:
        raise UserError(
            f"one sample's activations take {needed:.3g} MB, more than the memory limit of {memory_mb:g} MB: raise it"
        )


def split(batches: Sequence[Batch], at_once: int) -> list[Batch]:
    """Cut batches into smaller ones where the target can be cut along with the inputs."""
    parts = []
    for batch in batches:
        size = len(batch.inputs[0])
        if size <= at_once or not has_rows(batch.target, size):
            parts.append(batch)
        else:
            parts += [_part(batch, start, start + at_once) for start in range(0, size, at_once)]
    return parts


def in_folds(parts: Sequence[Batch], folds: int) -> tuple[list[Batch], list[int]]:
    """Return parts, and the number of the fold of each: the one that has the fewest samples so far.

    Parts of one size stay whole, so that folds differ by one of them at most. Of others one is cut, where that can be,
    that would give a fold more than its share.
    """
    sizes = [len(part.inputs[0]) for part in parts]
    share = math.ceil(sum(sizes) / folds) if len(set(sizes)) > 1 else math.inf
    filled, found, numbers = [0] * folds, list[Batch](), list[int]()
    left = list(reversed(parts))
    while left:
        part = left.pop()
        size, number = len(part.inputs[0]), filled.index(min(filled))
        room = share - filled[number]
        if size > room and has_rows(part.target, size):
            left.append(_part(part, int(room), size))
            part = _part(part, 0, int(room))
        found.append(part)
        numbers.append(number)
        filled[number] += len(part.inputs[0])
    return found, numbers


def _part(batch: Batch, start: int, stop: int) -> Batch:
    rows = slice(start, stop)
    return Batch(tuple(tensor[rows] for tensor in batch.inputs), rows_of(batch.target, rows))
