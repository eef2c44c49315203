"""From a trained supernet to scores of formats: by its alphas (DMPQ), or by the Shapley values of its operations (SMPQ)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from calib.errors import UserError
from calib.formats import Format
from smpq.allocate import Values
from smpq.contributions import Contributions
from smpq.policy import Policy, Space
from smpq.scores import Score, Scores
from smpq.supernet import Supernet, operations_of
from smpq.supernet_state import SupernetState

ESTIMATORS = {"smpq": "supernet Shapley", "dmpq": "supernet softmax"}
"""What `Scores.estimator` says, by method."""
_Cells = dict[tuple[str, str], tuple[float, float]]


def supernet_scores(method: str, supernet: Supernet, state: SupernetState, value: str | None = None) -> Scores:
    """Return the score of every format: that of its weight operation plus that of its activation operation.

    "smpq": the accumulated Shapley values (by `value`, or the first one), in standard deviations of their matrix, with the standard error
    of the walks. "dmpq": softmax(alpha), which has none. An operation without alternative scores 0. UserError for another method, for a
    value that was not estimated, or before the first update.
    """
    if method not in ESTIMATORS:
        raise UserError(f"unknown method {method!r} of the supernet: choose one of {', '.join(ESTIMATORS)}")
    seed = int(state.settings["seed"])
    if method == "dmpq":
        return _scores(supernet, _softmax_cells(supernet), 1, "softmax", ESTIMATORS[method], seed, 0, 0)
    name = value or next(iter(state.contributions))
    found = state.contributions.get(name)
    if found is None or not found.updates:
        raise UserError(f"the supernet has no Shapley values by {name}: train it to the end with that value")
    cells = _shapley_cells(found)
    return _scores(supernet, cells, found.updates, name, ESTIMATORS[method], seed, found.evaluations, found.walks)


def _scores(
    supernet: Supernet, cells: _Cells, samples: int, value: str, estimator: str, seed: int, evaluations: int, walks: int
) -> Scores:
    entries: dict[str, Mapping[Format, Score]] = {}
    for group in supernet.space.groups:
        row: dict[Format, Score] = {}
        for chosen in supernet.space.formats[group.name]:
            parts = [cells.get((group.name, name), (0.0, 0.0)) for name in operations_of(chosen)]
            total, variance = (sum(column) for column in zip(*parts, strict=True))
            row[chosen] = Score(total, math.sqrt(variance), samples, total)
        entries[group.name] = row
    return Scores(entries, value, estimator, seed, evaluations, walks, "epochs", 0.0)


def argmax_policy(space: Space, values: Values) -> Policy:
    """Return each group's best format without any budget: what DMPQ and SMPQ select in the papers."""
    return Policy({group.name: max(space.formats[group.name], key=values[group.name].__getitem__) for group in space.groups})


def _shapley_cells(found: Contributions) -> _Cells:
    rows = zip(found.operations, found.score.tolist(), np.asarray(found.variance).tolist(), strict=True)
    return {(operation.group, operation.name): (score, variance) for operation, score, variance in rows}


def _softmax_cells(supernet: Supernet) -> _Cells:
    return {
        (operation.group, operation.name): (share, 0.0)
        for key, shares in supernet.shares().items()
        for operation, share in zip(supernet.rows[key], shares, strict=True)
        if len(shares) > 1
    }
