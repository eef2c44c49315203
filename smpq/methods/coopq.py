"""CoopQ: layers that cooperate, moved from the widest to the narrowest format; values and interactions by Shapley."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem, linear_objective

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smpq.solve.allocate import Move


@method(
    "coopq",
    paper="CoopQ (IMPQ), 2025 (arXiv 2509.15455)",
    cost="one for each two layers, two times, or more of them in --evaluations",
)
def coopq(problem: SearchProblem) -> Objective:
    """Shapley values and interactions of layers that go from their widest to their narrowest format, one by one.

    All layers start at their widest format (progressive quantisation: nothing is removed). Values and interactions are
    sampled together; the quadratic model that has them chooses. The paper has two widths. For more of them ours: a
    format between takes the share t of its layer's move, the loss of the format by itself over that of the narrowest.
    A loss of second order is a squared length, so a value goes with t and an interaction with sqrt(t t').
    """
    import numpy as np

    from smpq.problem.policy import Policy
    from smpq.scoring.cross_terms import measure_singles, moves_from
    from smpq.scoring.interactions import orders_of_a_round, sample
    from smpq.scoring.stability import CUT_SHORT
    from smpq.scoring.widest import doubt_about_widest
    from smpq.solve.exchange import changed

    space, evaluator = problem.space, problem.evaluator
    folds = evaluator.folds or (evaluator,)
    widest = Policy({group: max(row) for group, row in space.formats.items()})
    players = [group for group, row in space.formats.items() if len(row) > 1]
    moves = moves_from(space, widest)
    singles = measure_singles(evaluator, moves, widest)
    if not problem.limits.evaluations or len(players) < 2:
        samples = {move: (value,) for move, value in singles.items()}
        return _objective(problem, samples, "one at a time", len(moves), "every move")

    def game(number: int, coalitions: Sequence[frozenset[int]]) -> list[float]:
        moved = [[(players[i], min(space.formats[players[i]])) for i in each] for each in coalitions]
        policies = [changed(widest, each) for each in moved]
        return folds[number % len(folds)].many(policies)

    orders = orders_of_a_round(len(players))
    rounds = max(1, problem.limits.evaluations // (2 * len(players) * orders))
    with problem.progress.bar("orders", rounds * orders) as advance:
        found = sample(
            game, len(players), rounds, np.random.default_rng(problem.seed), advance, problem.progress.enough
        )
    shares = {move: _share(move, singles, min(space.formats[move[0]])) for move in moves}
    index = {group: number for number, group in enumerate(players)}
    samples = {move: tuple((share * found.main[:, index[move[0]]]).tolist()) for move, share in shares.items()}
    pairs = {
        (one, other): math.sqrt(shares[one] * shares[other]) * float(found.pairs[index[one[0]], index[other[0]]])
        for number, one in enumerate(moves)
        for other in moves[number + 1 :]
        if one[0] != other[0] and shares[one] and shares[other]
    }
    stop_reason = CUT_SHORT if len(found.main) < rounds * orders else "evaluations"
    spent = len(moves) + found.evaluations
    linear = _objective(problem, samples, "progressive Shapley interactions", spent, stop_reason, singles).linear
    objective = Objective(linear, pairs)
    doubt = doubt_about_widest(space, objective.scores.objective())
    note = (
        f"{len(found.main)} of {rounds * orders} orders of {len(players)} layers from the widest to the narrowest "
        f"format, all pairs {rounds} times or more"
    )
    return replace(objective, notes=(note, *([doubt] if doubt else [])))


def _objective(
    problem: SearchProblem,
    samples: Mapping[Move, tuple[float, ...]],
    estimator: str,
    evaluations: int,
    stop_reason: str,
    alone: dict[Move, float] | None = None,
) -> Objective:
    return linear_objective(
        problem,
        samples,
        estimator=estimator,
        value_name=f"{problem.value_name} against the widest format",
        evaluations=evaluations,
        random=max(map(len, samples.values()), default=0) > 1,
        stop_reason=stop_reason,
        alone=alone,
    )


def _share(move: Move, singles: dict[Move, float], narrowest: object) -> float:
    """Return the share of its layer's move that a format takes;
    by the error of its bits where the move costs nothing.
    """
    group, chosen = move
    most = next(value for (name, each), value in singles.items() if name == group and each == narrowest)
    if most >= 0:
        share: float = 4.0 ** (min(each.weight_bits for name, each in singles if name == group) - chosen.weight_bits)
        return share
    return min(max(singles[move] / most, 0.0), 1.0)
