"""How many threads PyTorch computes with: as many as make it faster at this moment.

On a busy machine the threads of one operation wait for each other, and everything takes several times as long as with
one. A probe tells: the network itself, on some calibration samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from calib.network.graph import TracedModel
from calib.task import Batch
from calib.threads import computing_with

_WORTH = 1.6
"""Twice the threads are worth it when they are so much faster."""
_SAMPLES = 64
_TIMES = 3
_LONG = 2.0
"""A run of so many seconds is timed once."""
_PRODUCT, _PRODUCTS = 384, 8
_DECIDED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Who sets one of these has decided."""


def settle_threads(traced: TracedModel, batch: Batch, known: int | None) -> int:
    """Let PyTorch compute with as many threads as pay; returns how many it had before.

    `known` is how many the run began with: a run that goes on keeps them, since sums of another number of threads
    differ in the last bits. Otherwise threads are doubled as long as the network is 1.6 times as fast by the clock, up
    to those that PyTorch would take by itself. An environment that sets OMP_NUM_THREADS or MKL_NUM_THREADS is left
    alone.
    """
    before = torch.get_num_threads()
    if any(name in os.environ for name in _DECIDED):
        return before
    if known is not None:
        torch.set_num_threads(known)
        return before
    count = _SAMPLES if traced.dynamic_batch else len(batch.inputs[0])
    inputs = [tensor[:count] for tensor in batch.inputs]
    torch.set_num_threads(fastest(lambda: traced.run(inputs), before))
    return before


def threads_before_a_trace() -> int:
    """Return how many threads pay for a product of two matrices, while there is no network yet that could be timed."""
    before = torch.get_num_threads()
    if any(name in os.environ for name in _DECIDED):
        return before
    matrix = torch.ones(_PRODUCT, _PRODUCT)
    with computing_with(before):
        return fastest(lambda: [matrix @ matrix for _ in range(_PRODUCTS)], before)


def fastest(compute: Callable[[], object], most: int) -> int:
    """Return the number of threads, 1, 2, 4, ... up to `most`, beyond which twice as many are not worth it."""
    count = 1
    while 2 * count <= most and _speedup(compute, count, 2 * count) >= _WORTH:
        count *= 2
    return count


def _speedup(compute: Callable[[], object], few: int, many: int) -> float:
    """Return how many times as fast `many` threads are, the fastest of some runs in turn."""
    seconds: dict[int, list[float]] = {few: [], many: []}
    for _ in range(_TIMES + 1):  # the first run of each only warms up
        for count, found in seconds.items():
            torch.set_num_threads(count)
            start = time.perf_counter()
            compute()
            found.append(time.perf_counter() - start)
        if seconds[few][-1] > _LONG:
            break
    return min(seconds[few][1:] or seconds[few]) / min(seconds[many][1:] or seconds[many])
