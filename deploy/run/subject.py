"""What of a run is trained: by fine-tuning, by a reconstruction, or before the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.problem.policy import Policy
from smpq.quantized.plan import QuantPlan
from smpq.training.finetune import Subject

if TYPE_CHECKING:
    from deploy.run.workspace import Workspace


def subject(workspace: Workspace, policy: Policy, plan: QuantPlan) -> Subject:
    """Return the network of a run under the plan of a policy."""
    return Subject(
        workspace.task,
        workspace.traced,
        workspace.space.units,
        workspace.original,
        workspace.folded,
        plan,
        policy.key(),
        workspace.fingerprint,
    )
