"""OHQ: how the output changes when some of a layer's weights are masked, against what the layer costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem, linear_objective
from smpq.methods.weight_error import weighed_errors

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from calib.network.graph import TracedModel
    from calib.task import Batch
    from smpq.problem.policy import Policy, Space
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Ceiling, Values

MASKS = 4
"""For each layer."""
MASKED = 0.5
"""Share of a layer's weights that a mask sets to zero."""
ALPHA, BETA = 1.0, 0.0
"""Weight of the sensitivity and of the cost in the objective."""


def least_harm(space: Space, scores: Scores, ceilings: Sequence[Ceiling]) -> Policy:
    """Return the policy within the ceilings that is best for `ALPHA` times sensitivity and `BETA` times cost."""
    from smpq.solve.allocate import Problem, solve_or_explain

    return solve_or_explain(Problem(space, weighed(scores.values(), ceilings, ALPHA, BETA), ceilings))


def weighed(values: Values, ceilings: Sequence[Ceiling], alpha: float, beta: float) -> Values:
    """Return minus `alpha` times the sensitivity minus `beta` times the cost, both from 0 to 1 over all moves.

    The cost is the latency where the budget limits that, else the first that it limits; without a budget there is none.
    """
    costs = [ceiling.model for ceiling in ceilings]
    cost = next((model for model in costs if model.name == "latency"), costs[0] if costs else None)
    worth = _from_0_to_1(values)
    if cost is None or not beta:
        return {group: {chosen: alpha * value for chosen, value in row.items()} for group, row in worth.items()}
    spent = _from_0_to_1(
        {group: {chosen: cost.parts[group][chosen] for chosen in row} for group, row in values.items()}
    )
    return {
        group: {chosen: alpha * value - beta * spent[group][chosen] for chosen, value in row.items()}
        for group, row in worth.items()
    }


def _from_0_to_1(values: Values) -> Values:
    """Return the values in their order, the least as 0 and the largest as 1; 0 where all are the same."""
    known = [value for row in values.values() for value in row.values()]
    least, width = min(known), max(known) - min(known)
    return {
        group: {chosen: (value - least) / width if width else 0.0 for chosen, value in row.items()}
        for group, row in values.items()
    }


@method(
    "ohq",
    paper="Huang et al. 2023 (arXiv 2309.01945)",
    cost="at most four for each layer (512 samples)",
    allocate=least_harm,
    searched=False,
)
def ohq(problem: SearchProblem) -> Objective:
    """KL divergence of the output when weights of a layer are masked, times the relative error of its format.

    The score of layer l in format f is -D_l ||W_l - Q_f(W_l)||^2 / ||W_l masked||^2, with D_l the mean divergence of
    the output from that of the float network when the mask sets the masked part of W_l to zero. A layer's cost is
    weighed against it by a MILP. Activations play no part: of formats with the same weights those with more activation
    bits are a millionth ahead. Neither labels nor gradients are needed, so that `--data-free` gives the paper's
    setting: synthetic samples, fitted to the statistics of BatchNorm.

    No code of the paper was published and its formulas were not found: the abstract names the three parts (efficiency
    measured on the chip, sensitivity guided by masks, a linear programme), and their form is ours. Masks set half of
    the weights to zero, drawn four times by seed, which gives the standard errors. Measured at 3 bits on average: masks
    of a tenth lead to plans of less divergence, on ResNet-20 0.035 against 0.042 nats, on the digits 0.002 against
    0.004, and without data 0.004 against 0.016. A weight of the cost of 0.1 changes none of the digits' plans, since
    the budget limits the cost already, so it is 0. In the latency loop the search decides, and neither weight counts.
    """
    weights = list(dict.fromkeys(unit.weight for unit in problem.space.units))
    with problem.progress.bar("mask", len(weights) * len(problem.judging)) as advance:
        harms = masked_divergences(problem, weights, advance)
    return linear_objective(
        problem,
        weighed_errors(problem, {unit.path: harms[unit.weight] for unit in problem.space.units}),
        estimator="masks",
        value_name="kl",
        evaluations=MASKS * len(weights),
        random=True,
        stop_reason="number of masks",
    )


def masked_divergences(
    problem: SearchProblem, weights: Sequence[str], advance: Callable[[], None] = lambda: None
) -> dict[str, npt.NDArray[Any]]:
    """Return by weight `[MASKS]`: the mean divergence under each mask, divided by the squared norm of what it masks.

    What stands before a layer is computed once for all of its masks, and for the layers behind it.
    """
    import numpy as np
    import torch

    from smpq.training.placing import batch_on, graph_on

    placed, generator = graph_on(problem.traced, problem.device), torch.Generator().manual_seed(problem.seed)
    masked = {weight: [_masked(placed.state[weight], generator) for _ in range(MASKS)] for weight in weights}
    totals = {weight: np.zeros(MASKS) for weight in weights}
    count = sum(len(batch.inputs[0]) for batch in problem.judging)
    with torch.no_grad():
        for batch in problem.judging:
            _add_divergences(problem, placed, batch_on(batch, problem.device), masked, totals, advance)
    for weight, changed in masked.items():
        energies = [float((placed.state[weight].double() - each.double()).square().sum()) for each in changed]
        totals[weight] /= count * np.maximum(energies, np.finfo(float).tiny)
    return totals


def _masked(weight: Tensor, generator: Any) -> Tensor:
    """Return the weight with a share of it, drawn at random, set to zero."""
    import torch

    hidden = torch.randperm(weight.numel(), generator=generator)[: max(1, round(MASKED * weight.numel()))]
    kept = weight.new_ones(weight.numel())
    kept[hidden.to(kept.device)] = 0
    return weight.detach() * kept.view(weight.shape)


def _add_divergences(
    problem: SearchProblem,
    traced: TracedModel,
    batch: Batch,
    masked: dict[str, list[Tensor]],
    totals: dict[str, npt.NDArray[Any]],
    advance: Callable[[], None],
) -> None:
    """Add the divergences of one batch, summed over its samples; weights in the order in which they are first read."""
    from calib.network.execution import NO_EDITS, Edits, Execution
    from smpq.value.value import measure_of

    measure = measure_of(problem.task, "kl")
    places = {node.name: position for position, node in enumerate(traced.steps)}
    first = {weight: min(places[user.name] for user in traced.consumers(weight)) for weight in masked}
    whole = traced.run(batch.inputs)
    before = Execution(traced, batch.inputs)
    for weight in sorted(masked, key=first.__getitem__):
        before.advance(NO_EDITS, first[weight])
        for number, changed in enumerate(masked[weight]):
            output = before.fork().advance(Edits(parameters={weight: changed})).output()
            totals[weight][number] -= float(measure(output, whole, batch).sum())
        advance()
