"""SliM-LLM: the same average for every layer, and inside of a layer more bits for the salient columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.ceilings import excess, is_within, nothing_within
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
    values = scores.values()
    policies = [_of_type(space, found) for found in _types(space)]
    allowed = [policy for policy in policies if is_within(policy, ceilings)]
    if not allowed:
        raise nothing_within(
            "policy with one average for all layers",
            min(policies, key=lambda policy: excess(policy, ceilings)),
            ceilings,
        )
    return max(allowed, key=lambda policy: sum(values[group][chosen] for group, chosen in policy.formats.items()))


@method(
    "slim-llm",
    paper="SliM-LLM, Huang et al. ICML 2025 (arXiv 2405.14917)",
    cost="none: second moments of the calibration data",
    decides="groups of columns",
    allocate=same_average,
    searched=False,
    latency=False,
)
def slim_llm(problem: SearchProblem) -> Objective:
    """More bits for the columns of a layer that are salient; all layers with the same average.

    Give averages as `--formats wm2a16b128,wm2.5a16b128`, and `--rounding slim --widths slim`: the paper's allocation is
    the width rule `slim` (`calib.rounding.widths.slim`), its calibration of ranges and its GPTQ the rounding `slim`.
    This method takes the largest average within the budget for all layers, as the paper does; its score is the bits
    that a format takes away, by parameters. Other methods choose an average for each layer.
    """
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
