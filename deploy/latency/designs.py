"""Which engines to measure first: policies that tell the terms of the latency model apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from calib.formats.format import Format
from deploy.latency.model import STRENGTHS, covariance_of
from deploy.latency.terms import prior_of, row_of, terms_of
from smpq.problem.joins import Edge
from smpq.problem.policy import Policy, Space, canonical

_CANDIDATES = 240
_NOISE = 0.01


def designed_policies(
    space: Space, edges: Sequence[Edge], count: int, seed: int, doubtful: Collection[tuple[str, Format]] = frozenset()
) -> list[Policy]:
    """Return the policies to measure first: those that tell most without what is `doubtful`, then all that is doubtful
    at once.

    Doubtful are formats of groups over which the runtime may refuse the whole engine. A group that is offered nothing
    else keeps them. Where too few policies are free of doubt, others follow: they are left out when the one with all
    that is doubtful is refused.
    """
    careful = _without(space, doubtful)
    if careful.formats == space.formats:
        return _telling(space, edges, count, seed)
    trial = max(map(space.uniform, space.offered), key=lambda policy: len(set(doubtful) & policy.formats.items()))
    found = {policy.key(): policy for policy in (*_telling(careful, edges, count - 1, seed), canonical(trial, space))}
    for policy in _telling(space, edges, count, seed) if len(found) < count else ():
        found.setdefault(policy.key(), policy)
    return list(found.values())[:count]


def _without(space: Space, left_out: Collection[tuple[str, Format]]) -> Space:
    formats = {
        name: tuple(chosen for chosen in row if (name, chosen) not in left_out) or row
        for name, row in space.formats.items()
    }
    return replace(space, formats=formats)


def _telling(space: Space, edges: Sequence[Edge], count: int, seed: int) -> list[Policy]:
    """Return policies whose measurements tell most about all others.

    First every uniform format. Then, one by one, of many random policies the one whose measurement lowers the expected
    variance of the predictions for all of them most, by the prior of the latency model (an I-optimal design, built
    greedily; ours). They are all different, and the float engine, whose ratio is known to be 1, is not among them; in a
    small space there may be fewer than `count`.
    """
    reference = space.uniform(space.reference).key()
    uniform = {policy.key(): policy for policy in map(space.uniform, space.offered)}
    found = [policy for key, policy in uniform.items() if key != reference][:count]
    candidates = [policy for policy in random_policies(space, _CANDIDATES, seed) if policy.key() not in uniform]
    if len(found) >= count or not candidates:
        return found
    terms = terms_of(space, edges)
    covariance = covariance_of(prior_of(space, edges, terms), STRENGTHS)
    rows = np.array([row_of(policy, space, terms) for policy in candidates])
    for policy in found:
        covariance = _measured(covariance, row_of(policy, space, terms))
    for _ in range(min(count - len(found), len(candidates))):
        spread = rows @ covariance @ rows.T
        gains = (spread**2).sum(0) / (np.diag(spread) + _NOISE**2)
        best = int(gains.argmax())
        found.append(candidates[best])
        covariance = _measured(covariance, rows[best])
        rows[best] = 0.0  # never again
    return found


def random_policies(space: Space, count: int, seed: int) -> list[Policy]:
    """Return different random policies: runs of one format and scattered layers both occur, and joins in float where
    there are any.

    Fewer than `count` in a small space.
    """
    generator, formats = np.random.default_rng(seed), space.offered
    found: dict[str, Policy] = {}
    for _ in range(4 * count):
        if len(found) == count:
            break
        flip = generator.uniform(0.05, 0.6)
        first, picks = int(generator.integers(len(formats))), {}
        for group in space.groups:
            if generator.random() < flip:
                first = int(generator.integers(len(formats)))
            allowed = space.formats[group.name]
            picks[group.name] = (
                formats[first] if formats[first] in allowed else allowed[int(generator.integers(len(allowed)))]
            )
        kept = generator.random() * generator.integers(2)
        policy = canonical(
            Policy(picks, frozenset(join.name for join in space.joins if generator.random() < kept)), space
        )
        found.setdefault(policy.key(), policy)
    return list(found.values())


def _measured(covariance: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return what is left of the covariance of the coefficients when an engine with these terms has been measured."""
    gain = covariance @ row
    return covariance - np.outer(gain, gain) / (float(row @ gain) + _NOISE**2)
