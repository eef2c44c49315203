"""What the allocator of the system does with blocks that are freed: glibc's only, with another one nothing happens."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LARGEST_KEPT = 32 * 2**20
_KEPT = 256 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_blocks() -> None:
    """Let glibc keep blocks of up to 32 MB that are freed, up to 256 MB in all, for who asks next.

    By itself it gives most of what a layer's outputs took back to the system, which has to clear the same pages for the
    next layer: up to a third of the time of a small network on the CPU. For processes that are smpq's own. An
    environment that sets these limits itself (`MALLOC_TRIM_THRESHOLD_`, say) is left alone.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with _of_glibc() as libc:
            for name, size in ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _KEPT)):
                libc.mallopt(name, size)


class Gaps:
    """What blocks that come and go leave free in glibc's heap, given back to the system where it becomes much.

    The heap shrinks from its end alone. What work on a batch, or on a layer, leaves below a small block that stays is
    lost to all others: a transformer on batches of 3 MB grew by 120 MB with each.

    1. What one piece of work leaves is kept for the next one, however much it is. What counts as a gap is growth above
       that.
    2. Of a large piece nothing is kept. What is a little larger than a gap does not fit into it: such a process grows
       by a batch or two at times that nobody can tell. To take the pages anew costs little beside work on so much data.
    """

    _MUCH, _LARGE = 32 * 2**20, 8 * 2**20

    def __init__(self) -> None:
        self._level: int | None = None
        self._trim()

    def close(self, size: int) -> None:
        """Say that work on so many bytes is over. Gives free pages back if these are 8 MB, or if the process has
        grown by 32 MB above what the first piece of work after the last time left it with; takes microseconds if not.
        """
        if size >= self._LARGE:
            self._trim()
            return
        found = _resident()
        if self._level is None:
            self._level = found
        elif found > self._level + self._MUCH:
            self._level = None
            self._trim()

    @staticmethod
    def _trim() -> None:
        with _of_glibc() as libc:
            libc.malloc_trim(0)


def _resident() -> int:
    """Return the bytes of this process in memory; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123 - called for each batch
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def _of_glibc() -> Iterator[ctypes.CDLL]:
    """Let calls of functions that only glibc has do nothing elsewhere."""
    with suppress(AttributeError, OSError, TypeError):
        yield ctypes.CDLL(None)
