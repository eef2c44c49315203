"""Read and write `policy.json`."""

from __future__ import annotations

from calib.errors import UserError
from deploy.prepare import Prepared
from smpq.budget import Budget
from smpq.policy import Policy


def read_policy(prepared: Prepared) -> Policy:
    """Read `policy.json`, which a person may have edited; UserError names what does not fit the model or the target."""
    record = prepared.run.read_json("policy.json", "make one with smpq solve")
    policy = Policy.from_json(record, prepared.space)
    for group in prepared.space.groups:
        chosen = policy[group.name]
        if chosen not in prepared.space.formats[group.name] and chosen != prepared.space.reference:
            known = ", ".join(map(str, prepared.space.formats[group.name]))
            reason = prepared.refused.get(f"{group.name}: {chosen}", "it is not in this run's list of formats")
            raise UserError(f"policy.json gives {group.name} the format {chosen}: {reason}; it may have {known}")
    return policy


def write_policy(prepared: Prepared, policy: Policy, budget: Budget) -> None:
    """Write `policy.json`, and the budget that it was chosen for."""
    prepared.run.write_json("policy.json", policy.to_json(prepared.space.groups))
    prepared.run.write_json("budget.json", {"schema": 1, "budget": str(budget)})
