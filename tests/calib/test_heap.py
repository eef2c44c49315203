"""Large blocks go back to the system, where its C library is glibc."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WALK = """
import sys
from calib.heap import return_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "returned":
    return_large_blocks()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size, before = 24 * 2**20, resident()
libc.free(libc.malloc(size + 2**20))  # glibc learns from this that such blocks come and go
blocks = [libc.malloc(size) for _ in range(8)]
small = [libc.malloc(2**16) for _ in range(1)]
for block in blocks:
    ctypes.memset(block, 1, size)
keep = libc.malloc(2**20)  # above them in the heap: it cannot shrink
for block in blocks:
    libc.free(block)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_leave_no_gaps():
    def left(how):
        environment = {"PATH": "", "PYTHONPATH": str(ROOT)}  # without the settings of `make test`
        command = [sys.executable, "-c", WALK, how]
        return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    assert left("as it is") > 100 * 2**20
    assert left("returned") < 30 * 2**20
