"""One average for all layers: the rule of methods that decide inside of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from smpq.methods.ceilings import best_within
from smpq.methods.problem import Objective, SearchProblem, linear_objective

if TYPE_CHECKING:
    from calib.formats.number_type import NumberType
    from smpq.problem.policy import Policy, Space
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Ceiling


def same_average(space: Space, scores: Scores, ceilings: Sequence[Ceiling]) -> Policy:
    """Return the best policy within the ceilings in which all layers have the same type of weights, whatever their
    blocks; a layer that is not offered the type stays in float.
    """
    policies = [_of_type(space, found) for found in _types(space)]
    return best_within(policies, scores, ceilings, "policy with one average for all layers")


def bits_taken_away(problem: SearchProblem) -> Objective:
    """Return as the score of each format minus the bits that it takes away, by parameters."""
    space = problem.space
    total = sum(group.parameters for group in space.groups)
    samples = {
        (group.name, chosen): (-group.parameters * (space.reference.weight_bits - chosen.weight_bits) / total,)
        for group in space.groups
        for chosen in space.formats[group.name]
        if chosen != space.reference
    }
    return linear_objective(problem, samples, estimator="bits", value_name="bits taken away")


def _types(space: Space) -> list[NumberType]:
    return list(dict.fromkeys(chosen.weight for group in space.groups for chosen in space.formats[group.name]))


def _of_type(space: Space, found: NumberType) -> Policy:
    from smpq.problem.policy import Policy

    formats = {}
    for name, row in space.formats.items():
        own = next((chosen for chosen in row if chosen.weight == found), None)
        rest = space.reference if space.reference in row else row[0]
        formats[name] = rest if own is None else own
    return Policy(formats)
