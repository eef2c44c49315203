"""The policies that are measured to meet the limit, judged on samples that the search has not used."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from smpq.problem.policy import Policy
from smpq.value.evaluate import ValueFunction

_CLEARLY = 0.9
"""What loses less than this share of what another loses loses clearly less."""


@dataclass(frozen=True)
class Finalist:
    """A policy that meets the limit, its value on the samples of the search, and that on other samples.

    `unseen` is None where there are too few other samples, and where there is nothing to choose from.
    """

    policy: Policy
    value: float
    unseen: float | None

    @property
    def decides(self) -> float:
        """The value that finalists are compared by."""
        return self.value if self.unseen is None else self.unseen


def judged(policies: Sequence[Policy], value: ValueFunction, unseen: ValueFunction | None) -> tuple[Finalist, ...]:
    """Return the finalists, the best one first: by `unseen`, or by `value` where that is None.

    The values of many policies differ by little. The best one on the samples of the search is therefore overrated on
    them. A single policy is not evaluated once more.
    """
    others = unseen.many(policies) if unseen is not None and len(policies) > 1 else [None] * len(policies)
    found = [Finalist(*row) for row in zip(policies, value.many(policies), others, strict=True)]
    return tuple(sorted(found, key=lambda each: each.decides, reverse=True))


def lasting_first(finalists: Sequence[Finalist], lasting: Collection[str]) -> tuple[Finalist, ...]:
    """Return finalists, the best one first, with the best of the `lasting` ones (keys of policies) in front unless the
    best of all loses clearly less.
    """
    first = next((each for each in finalists if each.policy.key() in lasting), finalists[0])
    if finalists[0].decides > _CLEARLY * min(first.decides, 0.0):
        first = finalists[0]
    return (first, *(each for each in finalists if each is not first))
