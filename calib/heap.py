"""What the allocator of the system does with blocks that are freed: glibc's only, with another one nothing happens."""

from __future__ import annotations

import contextlib
import ctypes
import os

MUCH = 64 * 2**20
"""Bytes of data beyond which memory must not depend on how the allocator packs it."""
_LARGE = 8 * 2**20
_LARGEST_KEPT = 16 * 2**20
_KEPT = 256 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_blocks() -> None:
    """Let glibc keep blocks of up to 16 MB that are freed, up to 256 MB in all, for who asks next.

    By itself it gives most of what a layer's outputs took back to the system, which has to clear the same pages for the
    next layer: up to a third of the time of a small network on the CPU. For processes that are smpq's own. An
    environment that sets these limits itself (`MALLOC_TRIM_THRESHOLD_`, say) is left alone.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):
        _set({_M_MMAP_THRESHOLD: _LARGEST_KEPT, _M_TRIM_THRESHOLD: _KEPT})


def return_large_blocks() -> None:
    """Let glibc give blocks of 8 MB and more back to the system as soon as they are freed.

    Otherwise it keeps what is smaller than 32 MB: batches that follow each other leave gaps in its heap, which grew by
    1.2 GB over 10,000 images.
    """
    _set({_M_MMAP_THRESHOLD: _LARGE, _M_TRIM_THRESHOLD: 2 * _LARGE})


def _set(limits: dict[int, int]) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        for name, size in limits.items():
            ctypes.CDLL(None).mallopt(name, size)
