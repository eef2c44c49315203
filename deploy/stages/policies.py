"""Read and write `policy.json`."""

from __future__ import annotations

from collections.abc import Mapping

from calib.errors import UserError
from deploy.files.search import BudgetFile
from deploy.run.directory import Run
from deploy.run.workspace import Workspace
from smpq.files import PolicyFile
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy, Space


def read_policy(workspace: Workspace) -> Policy:
    """Read `policy.json`, which a person may have edited; UserError names what does not fit the model or the target."""
    return policy_of_run(workspace.run, workspace.space, workspace.refused)


def policy_of_run(run: Run, space: Space, refused: Mapping[str, str]) -> Policy:
    """Read `policy.json` for a space; `refused` maps "group: format" to the reason why it is not offered. UserError as
    `read_policy`.
    """
    record = run.read(PolicyFile)
    with run.about(PolicyFile):
        return allowed(Policy.from_file(record, space), space, refused)


def allowed(policy: Policy, space: Space, refused: Mapping[str, str], file: str = PolicyFile.NAME) -> Policy:
    """Return the policy that a file holds; UserError names a format that the space does not offer, and why."""
    for group in space.groups:
        chosen = policy[group.name]
        if chosen not in space.formats[group.name] and chosen != space.reference:
            known = ", ".join(map(str, space.formats[group.name]))
            reason = refused.get(f"{group.name}: {chosen}", "it is not in this run's list of formats")
            raise UserError(f"{file} gives {group.name} the format {chosen}: {reason}; it may have {known}")
    return policy


def write_policy(workspace: Workspace, policy: Policy, budget: Budget) -> None:
    """Write `policy.json`, and the budget that it was chosen for."""
    workspace.run.write(policy.to_file(workspace.space.groups))
    workspace.run.write(BudgetFile(budget=str(budget)))
