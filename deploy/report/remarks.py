"""What to know about a timing besides its figures."""

from __future__ import annotations

from deploy.files.engine import TimingRow
from deploy.files.report import LatencyPart
from deploy.report.wording import number
from deploy.runner.state import QUIET

_LAUNCH_BOUND = 0.8
"""As in trtexec: from this share of the GPU's time on, the host may not enqueue fast enough."""
_COLD = 1.1
"""Hot and cold times that differ by less are told as one."""


def timing_remarks(timed: TimingRow | LatencyPart) -> list[str]:
    """Return sentences about launches, about the L2 cache where it matters, and about a machine that slowed down."""
    remarks = []
    if timed.enqueue_ms is not None and timed.enqueue_ms > _LAUNCH_BOUND * timed.engine_ms:
        remarks.append(
            f"It is bound by launches: the host takes {number(timed.enqueue_ms)} ms to enqueue a call of "
            f"{number(timed.engine_ms)} ms, so the "
            "ratio says little about the kernels. A larger batch, or a CUDA graph where there is none, shows them."
        )
    if (
        timed.hot_ms is not None
        and timed.cold_ms is not None
        and not 1 / _COLD <= timed.cold_ms / timed.hot_ms <= _COLD
    ):
        remarks.append(
            f"With other data in the GPU's L2 cache a call takes {number(timed.cold_ms)} ms, right behind another call "
            f"{number(timed.hot_ms)} ms."
        )
    if timed.throttled:
        remarks.append(
            f"The machine slowed down while it was timed, each time that was tried: {', '.join(timed.throttled)}."
        )
    if timed.slowdown > 1 + QUIET:
        remarks.append(
            f"Something else was at work while it was timed: the float engine took {number(timed.slowdown)} times as "
            "long as at its fastest, so the interval is wider by as much. Measure again when the machine is idle."
        )
    return remarks
