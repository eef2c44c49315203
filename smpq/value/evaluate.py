"""Evaluate policies, each at most once, and write every value down."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol

from smpq.problem.policy import Policy
from smpq.value.journal import Journal
from smpq.value.value import Compute


class ValueFunction(Protocol):
    """The value of a policy, higher is better; asking for several at once may be much cheaper than one by one."""

    def __call__(self, policy: Policy) -> float:
        """Return the value of one policy."""
        ...

    def many(self, policies: Iterable[Policy]) -> list[float]:
        """Return the values of several policies, in their order."""
        ...


class Evaluator:
    """A value function that remembers, in memory and in the run's journal; `evaluations` counts what was really
    computed.
    """

    def __init__(self, compute: Compute, journal: Journal | None = None, fingerprint: str = "") -> None:
        """`fingerprint` stands for the model's weights and the data. What the journal holds is not computed again."""
        self.evaluations = 0
        self._compute = compute
        self._journal = journal
        self._data = fingerprint
        self._fingerprint = hashlib.sha256(f"{fingerprint}|{compute.identity}".encode()).hexdigest()
        self._known: dict[str, float] = journal.read(self._fingerprint) if journal is not None else {}

    @cached_property
    def folds(self) -> tuple[Evaluator, ...]:
        """The same value on each part of the samples; none where a part would say too little."""
        count = self._compute.folds
        if count == 1:
            return ()
        return tuple(Evaluator(self._compute.fold(part), self._journal, self._data) for part in range(count))

    def __call__(self, policy: Policy) -> float:
        """Return the value of a policy."""
        return self.many([policy])[0]

    def many(self, policies: Iterable[Policy]) -> list[float]:
        """Return the values of several policies, in their order. Where some parts of the samples were evaluated before,
        only the others are.
        """
        wanted = [(policy.key(), policy) for policy in policies]
        missing = {key: policy for key, policy in wanted if key not in self._known}
        begun = {key: policy for key, policy in missing.items() if any(fold.knows(policy) for fold in self.folds)}
        parts = [fold.many(begun.values()) for fold in self.folds if begun]
        for key, values in zip(begun, zip(*parts, strict=True), strict=True):
            self._keep(key, self._compute.whole(values))
        keys = [key for key in missing if key not in begun]
        batches = math.ceil(len(keys) / self._compute.together)
        for number in range(batches):  # of nearly the same size: a small one at the end would keep few workers busy
            self._evaluate(keys[number * len(keys) // batches : (number + 1) * len(keys) // batches], missing)
        return [self._known[key] for key, _ in wanted]

    def knows(self, policy: Policy) -> bool:
        """Whether the value of a policy is known without computing it."""
        return policy.key() in self._known

    def _evaluate(self, keys: Sequence[str], policies: dict[str, Policy]) -> None:
        for index, value in self._compute([policies[key] for key in keys]):
            self.evaluations += 1
            self._keep(keys[index], value)

    def _keep(self, key: str, value: float) -> None:
        self._known[key] = value
        if self._journal is not None:
            self._journal.add(self._fingerprint, key, value)
