"""The samples that decide what a policy may lose, and what policies lose on them: the float model runs once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calib.batches import Batches, selection_batches
from deploy.files.search import Judged
from smpq.value.policy_loss import PolicyLoss

if TYPE_CHECKING:
    from deploy.run.workspace import Workspace


@dataclass(frozen=True)
class HeldOut:
    """`data` says which the batches are. `losses` gives what policies lose on them by kind, `drop` or `kl`, through the
    run's journal.
    """

    batches: Batches
    data: Judged
    losses: Callable[[str], PolicyLoss]


def held_out_of(workspace: Workspace) -> HeldOut:
    """Return the task's `selection()`; the calibration data where it has none, and in a run without samples."""
    batches, data = _batches(workspace)
    quantizer, limit = workspace.fake_quantizer, workspace.resources.memory_limit_mb
    fingerprint = f"{workspace.fingerprint}|{quantizer.calibration.digest()}|{data} {batches.content}"
    before = quantizer, workspace.space, workspace.task, batches
    behind = workspace.journal, fingerprint, limit
    # what is kept holds no reference to the workspace: the run's lock and journal end with it
    return HeldOut(batches, data, functools.cache(lambda kind: PolicyLoss(*before, kind, *behind)))


def _batches(workspace: Workspace) -> tuple[Batches, Judged]:
    if workspace.data_free is not None:
        return workspace.batches, "synthetic"
    limit = workspace.resources.memory_limit_mb
    found = selection_batches(workspace.task, workspace.traced.sizes, limit)
    return (workspace.batches, "calibration") if found is None else (found, "selection")
