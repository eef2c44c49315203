"""Race candidates on few samples first, and evaluate only those on all samples that could still win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smpq.problem.policy import Policy
from smpq.value.evaluate import ValueFunction

_FINALISTS = 2


@dataclass(frozen=True)
class Race:
    """`gains` of all candidates over the incumbent, each on the samples that it was followed on, and those that were
    evaluated on all samples with their values, the best one first.
    """

    gains: tuple[float, ...]
    finalists: tuple[tuple[Policy, float], ...]


def race(value: ValueFunction, folds: Sequence[ValueFunction], incumbent: Policy, candidates: Sequence[Policy]) -> Race:
    """Compare candidates with the incumbent, in pairs on the same samples.

    Successive halving (Jamieson and Talwalkar 2016) over the folds, which are equal parts of the samples: after one
    fold, two folds, four and so on the better half goes on, until two are left. They are evaluated on all samples by
    `value` where they are still ahead of the incumbent. With one fold all candidates are evaluated on all samples.
    """
    if len(folds) == 1 or not candidates:
        start, *values = value.many([incumbent, *candidates])
        ranked = sorted(zip(candidates, values, strict=True), key=lambda each: -each[1])
        return Race(tuple(found - start for found in values), tuple(ranked))
    gains = [0.0] * len(candidates)
    alive, seen, following = list(range(len(candidates))), 0, 1
    while True:
        for fold in folds[seen:following]:
            start, *values = fold.many([incumbent, *(candidates[index] for index in alive)])
            for index, found in zip(alive, values, strict=True):
                gains[index] = (gains[index] * seen + found - start) / (seen + 1)
            seen += 1
        alive.sort(key=lambda index: -gains[index])
        ahead = [index for index in alive if gains[index] > 0]
        if len(ahead) <= _FINALISTS or 2 * seen > len(folds):
            break
        alive, following = alive[: max((len(alive) + 1) // 2, _FINALISTS)], 2 * seen
    last = [candidates[index] for index in ahead[:_FINALISTS]]
    return Race(tuple(gains), tuple(sorted(zip(last, value.many(last), strict=True), key=lambda each: -each[1])))
