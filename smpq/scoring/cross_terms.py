"""What two moves do together besides what each does alone, around any policy, by forward passes only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calib.formats.format import Format
from smpq.problem.policy import Policy, Space
from smpq.solve.allocate import Move, Pairs
from smpq.value.evaluate import ValueFunction

_ROWS_AT_ONCE = 8
"""Moves whose pairs are asked for together: a kill loses little, and workers have enough to do."""


@dataclass(frozen=True)
class CrossTerms:
    """Changes of the value around a policy: of single moves, and what pairs of them change besides.

    `evaluations` policies were evaluated, most of them on a part of the samples. `cut_short`: not all that was asked
    for was measured.
    """

    singles: Mapping[Move, float]
    pairs: Pairs
    evaluations: int
    cut_short: bool = False


def moves_from(space: Space, centre: Policy) -> list[Move]:
    """Return the moves to every other format, in the order of the groups."""
    return [(group, chosen) for group, row in space.formats.items() for chosen in row if chosen != centre[group]]


def all_pairs(moves: Sequence[Move]) -> list[tuple[Move, Move]]:
    """Return the pairs of moves of different groups."""
    return [(one, other) for number, one in enumerate(moves) for other in moves[number + 1 :] if one[0] != other[0]]


def measure_singles(
    value: ValueFunction, moves: Sequence[Move], centre: Policy, advance: Callable[[], None] = lambda: None
) -> dict[Move, float]:
    """Return what each move changes of the value of `centre`."""
    start, *found = value.many([centre, *(centre.with_format(*move) for move in moves)])
    for _ in moves:
        advance()
    return {move: each - start for move, each in zip(moves, found, strict=True)}


def measure_pairs(
    folds: Sequence[ValueFunction],
    pairs: Sequence[tuple[Move, Move]],
    centre: Policy,
    parts: int = 1,
    advance: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
) -> CrossTerms:
    """Return V(i, j) - V(i) - V(j) + V(centre) of each pair, and the single changes as means over all folds.

    A pair is evaluated on `parts` of the folds, which are parts of the samples; they go round with its first move. Its
    single moves are evaluated on the same ones, so that what the samples have in common drops out of the difference.
    The pairs of one move are asked for together, in the order of the other one: all of them share what runs before
    their second move, which the evaluator computes once (`smpq.value.incremental`). CLADO (arXiv 2307.05657), section
    3; the parts and the order are ours. When `enough` says so, the pairs that are left are not measured.
    """
    moves = list(dict.fromkeys(move for pair in pairs for move in pair))
    by_first: dict[Move, list[Move]] = defaultdict(list)
    for one, other in pairs:
        by_first[one].append(other)
    singles = [measure_singles(fold, moves, centre) for fold in folds]
    found: dict[tuple[Move, Move], list[float]] = defaultdict(list)
    rows = list(by_first.items())
    for fold_number, fold in enumerate(folds):
        mine = [
            (one, others) for number, (one, others) in enumerate(rows) if (fold_number - number) % len(folds) < parts
        ]
        for start in range(0, len(mine), _ROWS_AT_ONCE):
            if enough():
                break
            asked = [(one, other) for one, others in mine[start : start + _ROWS_AT_ONCE] for other in others]
            known = fold(centre)
            values = fold.many(centre.with_format(*one).with_format(*other) for one, other in asked)
            alone = singles[fold_number]
            for pair, value in zip(asked, values, strict=True):
                found[pair].append(value - known - alone[pair[0]] - alone[pair[1]])
                advance()
    means = {move: sum(each[move] for each in singles) / len(folds) for move in moves}
    count = sum(map(len, found.values()))
    terms = {pair: sum(found[pair]) / len(found[pair]) for pair in pairs if pair in found}
    return CrossTerms(means, terms, len(moves) * len(folds) + count, cut_short=count < len(pairs) * parts)


def parts_within(evaluations: int, pairs: int, folds: int) -> int:
    """Return on how many parts of the samples each pair is evaluated within a number of evaluations; one at least."""
    return max(1, min(folds, evaluations // max(pairs, 1)))


def recentred(
    space: Space, singles: Mapping[Move, float], pairs: Pairs, shares: Mapping[str, Mapping[Format, float]]
) -> tuple[dict[Move, float], dict[tuple[Move, Move], float]]:
    """Return the same model with other parts: single moves as means over what the other groups have, and pairs that say
    nothing on average.

    `shares`: how often each group has which format; the mean value of its moves is 0 then, and so is the mean of a
    pair's value over either of its moves (the analysis of variance of Hoeffding 1948). Moves that `singles` does not
    name are those of the centre, worth 0. Every policy is worth the same but for a constant.
    """
    rows = {group: {chosen: number for number, chosen in enumerate(row)} for group, row in space.formats.items()}
    means = {group: np.array([shares[group].get(chosen, 0.0) for chosen in row]) for group, row in rows.items()}
    values = {group: np.array([singles.get((group, chosen), 0.0) for chosen in row]) for group, row in rows.items()}
    tables: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    for (one, other), value in pairs.items():
        table = tables.setdefault((one[0], other[0]), np.zeros((len(rows[one[0]]), len(rows[other[0]]))))
        table[rows[one[0]][one[1]], rows[other[0]][other[1]]] = value
    found: dict[tuple[Move, Move], float] = {}
    for (first, second), table in tables.items():
        mine, theirs = table @ means[second], means[first] @ table
        values[first] = values[first] + mine
        values[second] = values[second] + theirs
        left = (table - theirs) - (mine - means[first] @ mine)[:, None]  # in this order a share of 1 leaves 0
        found |= {
            ((first, one), (second, other)): float(left[i, j])
            for one, i in rows[first].items()
            for other, j in rows[second].items()
            if left[i, j]
        }
    return {
        (group, chosen): float(values[group][number] - means[group] @ values[group])
        for group, row in rows.items()
        for chosen, number in row.items()
    }, found
