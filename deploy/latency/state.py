"""What a closed loop knows, and what changes in it from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import median

from deploy.latency.doubts import doubted
from deploy.latency.observed import LASTING, Observation, Refusal
from deploy.latency.steps import Step
from smpq.problem.policy import Policy
from smpq.solve.allocate import Values as Marginals


@dataclass
class LoopState:
    """Measurements by policy, in the order in which they were made; refusals, steps, and what marginals were found."""

    measured: dict[str, Observation]
    refusals: list[Refusal] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    marginals: dict[str, Marginals] = field(default_factory=dict)
    stop_reason: str = ""

    @property
    def observed(self) -> dict[str, Observation]:
        """What was measured, with the doubts that later measurements cast on earlier ones."""
        return {each.policy.key(): each for each in doubted(list(self.measured.values()))}

    @property
    def counted(self) -> int:
        """How many engines the steps have measured, or tried to build, without those in doubt."""
        observed = self.observed
        keys = {step.proposal.policy.key() for step in self.steps}
        return sum(not (key in observed and observed[key].doubtful) for key in keys)

    def is_new(self, policy: Policy, limit: float = math.inf) -> bool:
        """Whether a policy was not measured, or once so that it is not sure to be within a limit or not."""
        known = self.observed.get(policy.key())
        return known is None or known.unsure(limit)

    def in_doubt(self, limit: float) -> list[Observation]:
        """Return what may be within a limit, but is unsure; the fastest first."""
        found = [o for o in self.observed.values() if o.unsure(limit) and (o.ratio <= limit or not o.doubtful)]
        return sorted(found, key=lambda each: each.ratio)

    def unconfirmed(self, limit: float) -> list[Observation]:
        """Return what is in doubt, or is within a limit and was maybe lucky, measured once; the fastest first."""
        lucky = [o for o in self.observed.values() if o.upper <= limit and not (o.again or o.confirmed(limit))]
        unique = {each.policy.key(): each for each in (*self.in_doubt(limit), *lucky)}
        return sorted(unique.values(), key=lambda each: each.ratio)

    def refused(self, policy: Policy) -> bool:
        """Whether the engine of a policy does not build."""
        return any(refusal.policy.key() == policy.key() for refusal in self.refusals)

    def aim(self, limit: float) -> float:
        """Return the ratio that, with the error of a usual measurement, just lasts within a limit (`LASTING`)."""
        errors = [each.standard_error for each in self.observed.values() if not each.doubtful]
        return limit - LASTING * (median(errors) if errors else 0.0)

    def left_out(self, limit: float) -> list[Policy]:
        """Return what was measured to miss a limit, and what does not build for no reason that is known."""
        missed = [each.policy for each in self.observed.values() if each.upper > limit and not each.unsure(limit)]
        return missed + [refusal.policy for refusal in self.refusals if not refusal.blamed]

    def keep(self, found: Observation) -> Observation:
        """Take in a measurement, in place of an earlier one of the same policy; returns it."""
        key = found.policy.key()
        found = replace(found, again=self.measured.pop(key, None) is not None)
        self.measured[key] = found
        return found
