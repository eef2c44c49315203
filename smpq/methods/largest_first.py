"""The rule of thumb that large layers are redundant: they get the fewest bits, whatever the network does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem, linear_objective
from smpq.solve.within import is_within, nothing_within

if TYPE_CHECKING:
    from calib.formats.format import Format
    from smpq.problem.policy import Policy, Space
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Ceiling


def fewest_bits_to_the_largest(space: Space, _: Scores, ceilings: Sequence[Ceiling]) -> Policy:
    """Return the policy in which layers, the largest first, get their cheapest format until the ceilings are met.

    All start in their most precise format. The last layer that is changed gets the most precise format that still meets
    the ceilings.
    """
    from smpq.problem.policy import Policy

    policy = Policy({group.name: _precise_first(space.formats[group.name])[0] for group in space.groups})
    for group in sorted(space.groups, key=lambda group: -group.parameters):
        if is_within(policy, ceilings):
            break
        name = group.name
        for chosen in _precise_first(space.formats[name]):
            if is_within(policy.with_format(name, chosen), ceilings):
                return policy.with_format(name, chosen)
        policy = policy.with_format(name, _cheapest(space, name, ceilings))
    if not is_within(policy, ceilings):
        raise nothing_within("policy with the fewest bits in all layers", policy, ceilings)
    return policy


@method(
    "largest-first",
    paper="a baseline: large layers are the redundant ones",
    cost="none",
    allocate=fewest_bits_to_the_largest,
    searched=False,
    latency=False,
)
def largest_first(problem: SearchProblem) -> Objective:
    """The cheapest format for the layers with most parameters, one after the other, until the budget is met.

    A score is minus the share of the model's weight bits that a format takes away.
    """
    space = problem.space
    total = sum(group.parameters for group in space.groups) * space.reference.weight_bits
    samples = {
        (group.name, chosen): (-group.parameters * (space.reference.weight_bits - chosen.weight_bits) / total,)
        for group in space.groups
        for chosen in space.formats[group.name]
        if chosen != space.reference
    }
    return linear_objective(problem, samples, estimator="sizes of layers", value_name="share of all weight bits")


def _precise_first(formats: Sequence[Format]) -> list[Format]:
    return sorted(
        formats, key=lambda chosen: (-chosen.weight_bits, -chosen.activation_bits, -(chosen.weight_block is not None))
    )


def _cheapest(space: Space, name: str, ceilings: Sequence[Ceiling]) -> Format:
    """Return the format that takes least of all limits together; of equally cheap ones the most precise."""
    return min(
        _precise_first(space.formats[name]),
        key=lambda chosen: sum(c.model.parts[name][chosen] / c.limit for c in ceilings),
    )
