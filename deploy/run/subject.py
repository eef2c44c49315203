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


def trains_on(workspace: Workspace) -> str:
    """Return the device that this process trains and takes gradients on; says so where a cluster alone has the one that
    was asked for.
    """
    resources = workspace.resources
    if resources.trains_on != resources.evaluates_on:
        workspace.progress.warn(
            f"torch sees no {resources.evaluates_on} here: what is trained, or has its gradients taken, is computed by "
            f"this process, on {resources.trains_on}"
        )
    return resources.trains_on
