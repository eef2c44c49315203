"""How many threads PyTorch computes with, and how they wait for each other. Importing it does not load torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_POLICY = "OMP_WAIT_POLICY"
_DECIDED = (_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Who sets one of these has decided."""


def wait_asleep() -> None:
    """Let threads of OpenMP sleep while they wait for work, in this process and those that it starts.

    By themselves they turn in a loop for some milliseconds. On a machine that others use too, the loop takes the core
    from the thread that is waited for: a small network took a hundred times as long with two threads as with one.
    OpenMP reads the setting when torch is loaded, so it has to be made before. An environment that sets it is left
    alone.
    """
    if not any(name in os.environ for name in _DECIDED):
        os.environ[_POLICY] = "PASSIVE"


@contextmanager
def computing_with(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads as long as the context is open."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
