"""What later measurements say of earlier ones: a machine that was busy all along could not tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deploy.latency.observed import Observation
from deploy.runner.quiet import widened
from deploy.runner.state import QUIET, REMEMBERED


def doubted(observations: Sequence[Observation]) -> list[Observation]:
    """Return the observations, in the order in which they were made, with larger errors where the float engine took
    longer than in one of the next `REMEMBERED`.

    A device says of each measurement how slow its float engine was by the fastest before it
    (`deploy.runner.quiet.quiet_rounds`). Where other work was there from the beginning, only what follows can tell. The
    interval then grows by the same rule. Such an observation is `doubtful`, unless it was a second one of its policy.
    """
    found = []
    for index, each in enumerate(observations):
        later = [o.float_ms for o in observations[index + 1 : index + 1 + REMEMBERED] if o.float_ms is not None]
        slowdown = each.float_ms / min(later) if each.float_ms is not None and later else 1.0
        if slowdown <= 1 + QUIET:
            found.append(each)
            continue
        half = each.upper - each.ratio
        _, high = widened((each.ratio - half, each.ratio + half), slowdown)
        error = (high - each.ratio) / 1.96
        found.append(replace(each, standard_error=error, float_ms=min(later), doubtful=not each.again))
    return found
