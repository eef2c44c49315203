"""From a trained supernet to scores of formats: by its alphas (DMPQ), or by the Shapley values of its operations
(SMPQ).
"""

from __future__ import annotations

from collections.abc import Callable

from calib.errors import UserError
from calib.formats.format import Format
from smpq.scoring.scores import Score, Scores
from smpq.supernet.network import Supernet, operations_of
from smpq.supernet.state import SupernetState


def shapley_scores(supernet: Supernet, state: SupernetState, value: str | None = None) -> Scores:
    """Return the score of every format: the Shapley value of its weight operation plus that of its activation operation
    (SMPQ).

    These are the accumulated Shapley values (by `value`, or the first one), in standard deviations of their matrix as
    in Shapley-NAS. The standard error is that of the sum: both operations leave in the same walks. `permutations`
    counts the walks. An operation without alternative scores 0. UserError for a value that was not estimated, or before
    the first update.
    """
    name = value or next(iter(state.contributions))
    found = state.contributions.get(name)
    if found is None or not found.updates:
        raise UserError(f"the supernet has no Shapley values by {name}: train it to the end with that value")
    numbers = {(operation.group, operation.name): number for number, operation in enumerate(found.operations)}

    def score(group: str, chosen: Format) -> Score:
        own = [numbers[group, part] for part in operations_of(chosen) if (group, part) in numbers]
        total = sum(float(found.score[number]) for number in own)
        if not own:
            return Score(total, 0.0, 1, total)
        walks, parts = (rows[:, own].sum(1, keepdims=True) for rows in (found.walks, found.parts))
        return Score(total, float(found.error(walks, parts)[0]), len(walks), total, tuple(walks[:, 0].tolist()))

    return _scores(supernet, state, name, "supernet Shapley", score, found.evaluations, len(found.walks))


def softmax_scores(supernet: Supernet, state: SupernetState) -> Scores:
    """Return the score of every format: softmax(alpha) of its weight operation plus that of its activation operation
    (DMPQ); no walks.
    """
    shares = {
        (group, operation.name): share
        for (group, side), row in supernet.shares().items()
        for operation, share in zip(supernet.rows[group, side], row, strict=True)
        if len(row) > 1
    }

    def score(group: str, chosen: Format) -> Score:
        total = sum(shares.get((group, part), 0.0) for part in operations_of(chosen))
        return Score(total, 0.0, 1, total)

    return _scores(supernet, state, "softmax", "supernet softmax", score)


def _scores(
    supernet: Supernet,
    state: SupernetState,
    value: str,
    estimator: str,
    score: Callable[[str, Format], Score],
    evaluations: int = 0,
    walks: int = 0,
) -> Scores:
    entries = {
        group.name: {chosen: score(group.name, chosen) for chosen in supernet.space.formats[group.name]}
        for group in supernet.space.groups
    }
    return Scores(entries, value, estimator, int(state.settings["seed"]), evaluations, walks, "epochs", 0.0)
