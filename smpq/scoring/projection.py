"""The nearest positive semidefinite quadratic model, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from smpq.solve.allocate import Move, Pairs


@dataclass(frozen=True)
class Projected:
    """The model after projection. `negative` of `moves` eigenvalues were set to 0; `share`: the sum of their sizes as a
    share of that of all eigenvalues. `largest_shift`: the most that the value of a single move changed.
    """

    singles: Mapping[Move, float]
    pairs: Pairs
    negative: int
    moves: int
    share: float
    largest_shift: float

    def __str__(self) -> str:
        return (
            f"{self.negative} of {self.moves} eigenvalues were negative ({100 * self.share:.2g} % of the sum of all "
            f"sizes) and are now 0; the value of a single move changes by up to {self.largest_shift:.3g} by that"
        )


def project(singles: Mapping[Move, float], pairs: Pairs) -> Projected:
    """Return the model whose loss is convex: no policy is predicted to gain against the centre.

    G has 2 L(i) on its diagonal and the cross terms of the loss beside it, 0 between formats of one group; a policy
    loses x' G x / 2. The eigenvalues of G below 0 are set to 0 (CLADO, arXiv 2307.05657, as its scripts do). The
    diagonal changes with that, and with it the values of single moves; the entries between formats of one group do too,
    but no policy has both, so they do not count.
    """
    moves = list(singles)
    index = {move: number for number, move in enumerate(moves)}
    loss = np.diag([-2.0 * singles[move] for move in moves])
    for (one, other), value in pairs.items():
        loss[index[one], index[other]] = loss[index[other], index[one]] = -value
    sizes, vectors = np.linalg.eigh(loss)
    kept = (vectors * np.maximum(sizes, 0.0)) @ vectors.T
    kept = (kept + kept.T) / 2
    after = {move: -float(kept[number, number]) / 2 for move, number in index.items()}
    beyond = sizes < -1e-9 * max(float(np.abs(sizes).max(initial=0.0)), 1e-300)
    groups = [(one, other) for number, one in enumerate(moves) for other in moves[number + 1 :] if one[0] != other[0]]
    return Projected(
        after,
        {(one, other): -float(kept[index[one], index[other]]) for one, other in groups},
        int(beyond.sum()),
        len(moves),
        float(-sizes[beyond].sum() / max(float(np.abs(sizes).sum()), 1e-300)),
        max((abs(after[move] - singles[move]) for move in moves), default=0.0),
    )
