"""From a trained supernet to scores of formats: by its alphas (DMPQ), or by the Shapley values of its operations
(SMPQ).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from calib.errors import UserError
from calib.formats.format import Format
from smpq.problem.policy import Policy, Space
from smpq.scoring.scores import Score, Scores
from smpq.solve.allocate import Values
from smpq.supernet.contributions import Contributions
from smpq.supernet.network import Supernet, operations_of
from smpq.supernet.state import SupernetState


def shapley_scores(
    supernet: Supernet, state: SupernetState, value: str | None = None, *, standardised: bool = True
) -> Scores:
    """Return the score of every format: the Shapley value of its weight operation plus that of its activation operation
    (SMPQ).

    These are the accumulated Shapley values (by `value`, or the first one), in standard deviations of their matrix as
    in Shapley-NAS; not `standardised`, their mean over updates in units of the value, so that weights and activations
    are compared by what they contribute and not each side by its own spread. `permutations` counts the walks. An
    operation without alternative scores 0. UserError for a value that was not estimated, or before the first update.
    """
    name = value or next(iter(state.contributions))
    found = state.contributions.get(name)
    if found is None or not found.updates:
        raise UserError(f"the supernet has no Shapley values by {name}: train it to the end with that value")
    entries = _entries(supernet, _shapley_cells(found, standardised=standardised))
    return Scores(entries, name, "supernet Shapley", _seed(state), found.evaluations, len(found.walks), "epochs", 0.0)


def softmax_scores(supernet: Supernet, state: SupernetState) -> Scores:
    """Return the score of every format: softmax(alpha) of its weight operation plus that of its activation operation
    (DMPQ); no walks.
    """
    return Scores(
        _entries(supernet, _softmax_cells(supernet)), "softmax", "supernet softmax", _seed(state), 0, 0, "epochs", 0.0
    )


def _seed(state: SupernetState) -> int:
    return int(state.settings["seed"])


@dataclass(frozen=True)
class _Cell:
    """The score of one operation, its variance, and what each walk says."""

    score: float
    variance: float = 0.0
    walks: tuple[float, ...] = ()


_Cells: TypeAlias = Mapping[tuple[str, str], _Cell]


def _entries(supernet: Supernet, cells: _Cells) -> dict[str, Mapping[Format, Score]]:
    entries: dict[str, Mapping[Format, Score]] = {}
    for group in supernet.space.groups:
        row: dict[Format, Score] = {}
        for chosen in supernet.space.formats[group.name]:
            parts = [cells[group.name, name] for name in operations_of(chosen) if (group.name, name) in cells]
            total = sum(part.score for part in parts)
            walks = tuple(sum(together) for together in zip(*(part.walks for part in parts), strict=True))
            row[chosen] = Score(
                total, math.sqrt(sum(part.variance for part in parts)), max(len(walks), 1), total, walks
            )
        entries[group.name] = row
    return entries


def argmax_policy(space: Space, values: Values) -> Policy:
    """Return each group's best format without any budget: what DMPQ and SMPQ select in the papers."""
    return Policy(
        {group.name: max(space.formats[group.name], key=values[group.name].__getitem__) for group in space.groups}
    )


def _shapley_cells(found: Contributions, *, standardised: bool) -> dict[tuple[str, str], _Cell]:
    values, walks = (found.score, found.walks) if standardised else (found.mean, found.marginals)
    errors = found.standard_errors()[0 if standardised else 1]
    return {
        (operation.group, operation.name): _Cell(float(values[i]), float(errors[i]) ** 2, tuple(walks[:, i].tolist()))
        for i, operation in enumerate(found.operations)
    }


def _softmax_cells(supernet: Supernet) -> dict[tuple[str, str], _Cell]:
    return {
        (operation.group, operation.name): _Cell(share)
        for key, shares in supernet.shares().items()
        for operation, share in zip(supernet.rows[key], shares, strict=True)
        if len(shares) > 1
    }
