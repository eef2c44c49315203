"""How much a search may spend: what `--effort` stands for."""

from __future__ import annotations

from dataclasses import dataclass

from calib.errors import UserError


@dataclass(frozen=True)
class Effort:
    """How much the search may spend: evaluations on scores, and after that on rounds near the solution and exchanges.

    `scoring` evaluations, the first pass included; with 0 the one-at-a-time scores of the first pass are all there is.
    `rounds` of marginals, `exchanges` batches of exchanges after each, `evaluations` in all. `finalists` plans are
    judged on other samples, besides the starts. `gain` is too little to go on for, as a share of what the plan loses:
    expected of more scoring, or gained by a round.
    """

    scoring: int = 400
    rounds: int = 4
    exchanges: int = 6
    evaluations: int = 400
    finalists: int = 6
    gain: float = 0.02

    def most(self, moves: int) -> int:
        """How many policies of a space with so many moves are evaluated at most, to score and in one search."""
        return (self.scoring or moves) + self.evaluations


EFFORTS = {
    "fast": Effort(scoring=0, rounds=0, exchanges=1, evaluations=8, finalists=1, gain=0.1),
    "normal": Effort(),
    "thorough": Effort(scoring=1200, rounds=10, exchanges=12, evaluations=2000, gain=0.002),
}


def effort_from_name(name: str) -> Effort:
    """Return how much `--effort` NAME may spend; UserError lists the names."""
    if name not in EFFORTS:
        raise UserError(f"unknown effort {name!r}: choose one of {', '.join(EFFORTS)}")
    return EFFORTS[name]
