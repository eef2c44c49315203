"""CPU and wall seconds of a command, with those of every process that it starts, also of those it leaves behind.

Workers are forked off by a server that nobody waits for, so that `getrusage` of the command's parent knows nothing of
them. A subreaper (Linux, `prctl`) becomes their parent, and waits for them.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36


class Spent(NamedTuple):
    """Seconds: of all processes' user and system time, and of the clock."""

    cpu: float
    wall: float


def spent_by(command: Sequence[str | Path], cwd: Path) -> Spent:
    """Run a command in a directory, wait for all that it starts, and return what it took; RuntimeError with the end of
    what it printed, where it fails. `smpq` ends with 1 where the budget is not met: that is no failure.
    """
    inner = [sys.executable, Path(__file__).resolve(), *map(str, command)]
    found = subprocess.run(inner, cwd=cwd, capture_output=True, text=True, check=False)
    if found.returncode not in (0, 1):
        raise RuntimeError(f"{command[0]} ended with {found.returncode}: {found.stderr[-2000:]}")
    return Spent(*json.loads(found.stdout.splitlines()[-1]))


def main(command: Sequence[str]) -> int:
    """Print what a command took as the last line; returns its exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    wall = time.perf_counter() - start
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps([used.ru_utime + used.ru_stime, wall]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
