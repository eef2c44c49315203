"""Freed blocks are kept, or go back to the system, where its C library is glibc."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WALK = """
import sys
from calib.heap import Gaps

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

gaps, batch = Gaps(), 24 * 2**20 if sys.argv[1] == "first, a large one" else 0
if not sys.argv[1].startswith("first"):
    gaps.close(batch)
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size, before = 24 * 2**20, resident()
libc.free(libc.malloc(size + 2**20))  # glibc learns from this that such blocks come and go
blocks = [libc.malloc(size) for _ in range(16)]
for block in blocks:
    ctypes.memset(block, 1, size)
keep = libc.malloc(2**20)  # above them in the heap: it cannot shrink
for block in blocks:
    libc.free(block)
if sys.argv[1] != "as it is":
    gaps.close(batch)
print(resident() - before)
"""


AGAIN = """
import ctypes, resource, sys
from calib.heap import keep_freed_blocks

if sys.argv[1] == "kept":
    keep_freed_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    blocks = [libc.malloc(12 * 2**20) for _ in range(5)]
    for block in blocks:
        ctypes.memset(block, 1, 12 * 2**20)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Twenty times 60 MB are written to and freed; tells how often the system had to find a page."""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def number(program, how, **changes):
    """What a program prints, without the settings of `make test`."""
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-c", program, how]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@only_glibc
def test_freed_blocks_leave_no_gaps():
    assert number(WALK, "as it is") > 300 * 2**20
    assert number(WALK, "closed") < 30 * 2**20


@only_glibc
def test_what_one_batch_leaves_is_kept_for_the_next():
    assert number(WALK, "first batch") > 300 * 2**20


@only_glibc
def test_of_a_large_batch_nothing_is_kept():
    assert number(WALK, "first, a large one") < 30 * 2**20


@only_glibc
def test_freed_blocks_are_used_again():
    assert number(AGAIN, "as it is") > 100_000
    assert number(AGAIN, "kept") < 40_000


@only_glibc
def test_who_sets_the_limits_has_decided():
    assert number(AGAIN, "kept", MALLOC_MMAP_THRESHOLD_="65536") > 100_000
