"""The baseline of every mixed plan: one format for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.ceilings import best_within
from smpq.methods.problem import Objective, SearchProblem, linear_objective

if TYPE_CHECKING:
    from calib.formats.format import Format
    from smpq.problem.policy import Policy, Space
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Ceiling


def best_uniform(space: Space, scores: Scores, ceilings: Sequence[Ceiling]) -> Policy:
    """Return the best uniform policy within the ceilings; a layer that lacks the format stays in float.

    The scores of a format add up to the value of the policy that has it everywhere, with what other layers have there.
    """
    values = scores.values()
    policies = [
        (space.uniform(chosen), sum(row.get(chosen, 0.0) for row in values.values())) for chosen in _formats(space)
    ]
    return best_within(policies, ceilings, "policy with one format for all layers")


@method(
    "uniform",
    paper="a baseline",
    cost="one for each format",
    allocate=best_uniform,
    searched=False,
    latency=False,
)
def uniform(problem: SearchProblem) -> Objective:
    """The same format for every layer that can have it: the best such policy within the budget.

    The value of the policy that has a format everywhere, against the float model's, in equal shares of the layers that
    it changes.
    """
    space, evaluator = problem.space, problem.evaluator
    formats = [chosen for chosen in _formats(space) if chosen != space.reference]
    with problem.progress.step("evaluate uniform policies"):
        start, *values = evaluator.many(
            [space.uniform(space.reference), *(space.uniform(chosen) for chosen in formats)]
        )
    samples = {}
    for chosen, value in zip(formats, values, strict=True):
        having = [group.name for group in space.groups if chosen in space.formats[group.name]]
        samples.update({(name, chosen): ((value - start) / len(having),) for name in having})
    return linear_objective(
        problem, samples, estimator="uniform policies", value_name=problem.value_name, evaluations=len(formats) + 1
    )


def _formats(space: Space) -> list[Format]:
    return list(dict.fromkeys(chosen for group in space.groups for chosen in space.formats[group.name]))
