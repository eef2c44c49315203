"""How many processes evaluate policies where nobody says: one for each core that is free, or for half of them on a busy
machine, where starting them pays.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from calib.errors import UserError
from calib.free_memory import free_bytes
from calib.task import Task
from deploy.terminal.progress import Progress
from smpq.solve.effort import Effort
from smpq.value.value import PolicyValue
from smpq.value.workers.pool import WorkerPool
from smpq.value.workers.process import check_portable
from smpq.value.workers.resources import Resources

_PAYS_S = 60.0
"""A process is worth its start where there may be so many seconds of work for it: it imports torch, gets a copy of the
network, and computes alone what one process computes once for all policies. Most searches end long before.
"""
_SHARE = 0.5
"""Of the time of a run, for one policy: those that share their first layers compute them once."""
_MOST = 16
_PROGRAMS = ("smpq", "cli.py")
_SHARE_OF_MEMORY = 0.5
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LOAD = Path("/proc/loadavg")
_LOOKS, _BETWEEN_S = 10, 0.02
_MOMENTS = 0.25
"""A core that others use less than this is free."""


def pool_that_pays(
    here: PolicyValue, task: Task, spending: Effort, resources: Resources, progress: Progress
) -> WorkerPool | None:
    """Return workers for a search that is long on one core; None where this process is enough, or others cannot help.

    The values do not depend on it. Tells how long the search takes at most.
    """
    seconds = _SHARE * spending.most(here.space.moves()) * here.seconds_of_a_run()
    worth = math.floor(seconds / _PAYS_S)
    able = worth > 1 and here.device == "cpu" and smpq_is_the_program()
    cores = workers_that_fit(here, min(worth, cores_to_take())) if able else 1
    if cores > 1:
        try:
            check_portable(task, here.value_name)
        except UserError:
            cores = 1
    shared = f", which {cores} processes share" if cores > 1 else ""
    if seconds >= 1:
        progress.say(f"judging policies takes at most about {in_words(seconds)} on one core{shared}")
    return replace(resources, workers=cores).pool() if cores > 1 else None


def smpq_is_the_program() -> bool:
    """Whether the command line itself was started, and not a script that calls it: other processes would run the script
    again where it does not guard its main part.
    """
    return Path(getattr(sys.modules["__main__"], "__file__", None) or "").name in _PROGRAMS


def cores_to_take() -> int:
    """Return how many processes get all cores that others leave alone, or half of those that this process may use,
    whichever is more; at least one.

    A system shares n cores among k processes of ours and b others alike: where there are more than n of them, k get
    n k / (k + b) cores in all, which is half of n where k is b.
    """
    able = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _all_cores(), _quota())
    others = _others_at_work() * able / _all_cores()
    return max(1, math.floor(max(able - others, min(able, others)) + _MOMENTS))


def _all_cores() -> int:
    return os.cpu_count() or 1


def _others_at_work() -> float:
    """Return how many processes other than this one compute on this machine now; where the system does not say, how
    many did in the last minute.
    """
    seen = []
    try:
        for look in range(_LOOKS):
            time.sleep(_BETWEEN_S if look else 0)
            running, _, _ = _LOAD.read_text(encoding="ascii").split()[3].partition("/")
            seen.append(int(running) - 1)
    except (OSError, ValueError, IndexError):
        return max(0.0, os.getloadavg()[0] - 1) if hasattr(os, "getloadavg") else 0.0
    return max(0.0, statistics.fmean(seen))


def workers_that_fit(here: PolicyValue, wanted: int) -> int:
    """Return how many workers, up to `wanted` and 16, find room for their networks in half of the free memory."""
    room = _SHARE_OF_MEMORY * free_bytes() / max(1, here.bytes_of_a_copy)
    return max(1, math.floor(min(wanted, _MOST, room)))


def in_words(seconds: float) -> str:
    """Return a time as a person says it: 40 s, 3 min, 1.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds, -1 if seconds >= 20 else 0)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _quota() -> float:
    """Return how many cores a container may use; infinity without a limit."""
    try:
        allowed, period = _QUOTA.read_text(encoding="ascii").split()
        return float(allowed) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such file
        return math.inf
