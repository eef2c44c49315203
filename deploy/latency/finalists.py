"""The policies that are measured to meet the limit, judged on samples that the search has not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smpq.problem.policy import Policy
from smpq.value.evaluate import ValueFunction


@dataclass(frozen=True)
class Finalist:
    """A policy that meets the limit, its value on the samples of the search, and that on other samples.

    `unseen` is None where there are too few other samples.
    """

    policy: Policy
    value: float
    unseen: float | None


def judged(policies: Sequence[Policy], value: ValueFunction, unseen: ValueFunction | None) -> tuple[Finalist, ...]:
    """Return the finalists, the best one first: by `unseen`, or by `value` where that is None.

    The values of many policies differ by little. The best one on the samples of the search is therefore overrated on
    them.
    """
    others = unseen.many(policies) if unseen is not None else [None] * len(policies)
    found = [Finalist(*row) for row in zip(policies, value.many(policies), others, strict=True)]
    return tuple(sorted(found, key=lambda each: each.value if each.unseen is None else each.unseen, reverse=True))
