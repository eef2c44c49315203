"""Keep a compiled library from writing to standard output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Throw away what compiled code writes to file descriptor 1 inside the block.

    HiGHS prints a debugging line past its own output option, and `--json` owns standard output. The C library keeps a
    buffer of its own, which is written out on both sides of the block so that nothing lands on the wrong one.
    """
    try:
        kept = os.dup(1)
    except OSError:  # standard output is closed: there is nothing to keep clean
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    _flush_c()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        _flush_c()
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


def _flush_c() -> None:
    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
