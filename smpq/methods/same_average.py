"""One average for all layers: the rule of methods that decide inside of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from smpq.methods.ceilings import best_within
from smpq.methods.problem import Objective, SearchProblem, linear_objective

if TYPE_CHECKING:
    from calib.formats.number_type import NumberType
    from smpq.problem.policy import Policy, Space
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Ceiling


def same_average(space: Space, scores: Scores, ceilings: Sequence[Ceiling]) -> Policy:
    """Return the best policy within the ceilings in which all layers have the same type of weights, and blocks of the
    same size where they are offered these; a layer that is not offered the type stays in float.
    """
    from smpq.solve.allocate import worth

    values = scores.values()
    kinds = dict.fromkeys((chosen.weight, chosen.weight_block) for row in space.formats.values() for chosen in row)
    policies = [_of_type(space, *found) for found in kinds]
    valued = [(policy, worth(values, policy)) for policy in policies]
    return best_within(valued, ceilings, "policy with one average for all layers")


def bits_taken_away(problem: SearchProblem, family: type[NumberType], **settings: str) -> Objective:
    """Return as the score of each format minus the bits that it takes away, by parameters.

    What the method decides inside of layers is made with weights of the types of `family`, by calibration with these
    `settings`. A note says so where the run has others.
    """
    space = problem.space
    total = sum(group.parameters for group in space.groups)
    samples = {
        (group.name, chosen): (-group.parameters * (space.reference.weight_bits - chosen.weight_bits) / total,)
        for group in space.groups
        for chosen in space.formats[group.name]
        if chosen != space.reference
    }
    found = linear_objective(problem, samples, estimator="bits", value_name="bits taken away")
    return replace(found, notes=_other_settings(problem, family, settings))


def _other_settings(problem: SearchProblem, family: type[NumberType], settings: Mapping[str, str]) -> tuple[str, ...]:
    offered = {chosen.weight for row in problem.space.formats.values() for chosen in row}
    if not any(isinstance(type_, family) for type_ in offered):
        return ("no format that is offered leaves anything open inside of a layer: this method has nothing to decide",)
    own = problem.fake_quantizer.calibration.settings if settings else None
    others = [f"--{name} {wanted}" for name, wanted in settings.items() if getattr(own, name) != wanted]
    return (f"inside of layers this is another method than asked for: that takes {' '.join(others)}",) if others else ()


def _of_type(space: Space, found: NumberType, block: int | None) -> Policy:
    from smpq.problem.policy import Policy

    formats = {}
    for name, row in space.formats.items():
        rest = space.reference if space.reference in row else row[0]
        own = [chosen for chosen in row if chosen.weight == found] or [rest]
        formats[name] = next((chosen for chosen in own if chosen.weight_block == block), own[0])
    return Policy(formats)
