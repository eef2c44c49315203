"""HAWQ: how curved the loss is in each layer's weights, times how far a format moves them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from calib.errors import UserError, first_line
from smpq.methods.base import Need, method
from smpq.methods.problem import Objective, SearchProblem, linear_objective
from smpq.methods.weight_error import weighed_errors

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from calib.network.execution import Edit, Edits
    from calib.network.graph import TracedModel
    from calib.network.units import Unit
    from calib.task import Batch, Task

PROBES = 32
"""For each layer, at least; spread over the calibration data."""
_SAMPLES_AT_ONCE = 32


@method(
    "hawq",
    paper="HAWQ-V2, Dong et al. NeurIPS 2020 (arXiv 1911.03852), and HAWQ-V3, Yao et al. ICML 2021 (arXiv 2011.10680)",
    cost="two, and up to four for each layer (512 samples)",
    needs=(Need.LABELS, Need.GRADIENTS),
)
def hawq(problem: SearchProblem) -> Objective:
    """Mean Hessian trace of each layer's weights times the squared error of the weights in a format.

    The score of layer l in format f is -(Tr(H_l) / n_l) ||Q_f(W_l) - W_l||^2, with H_l the Hessian of the mean loss in
    the n_l weights of the layer (HAWQ-V2, and HAWQ-V3's objective). Half of it is the expected change of the loss, to
    second order. Activations play no part: of formats with the same weights those with more activation bits are a
    millionth ahead. The integers Q_f are those of the run's rounding. The trace is Hutchinson's estimate, whose
    standard error is that of the score.
    """
    import numpy as np

    space, parts = problem.space, _parts(problem)
    probes = math.ceil(PROBES / len(parts))
    with problem.progress.bar("Hessian", len({unit.weight for unit in space.units}) * len(parts)) as advance:
        traces = mean_traces(
            problem.task, problem.traced, space.units, parts, probes, problem.seed, problem.device, advance
        )
    curved_down = [unit.path for unit in space.units if np.mean(traces[unit.path]) < 0]
    if curved_down:
        problem.progress.warn(
            f"the loss curves downwards in the weights of {', '.join(curved_down[:5])}: the network is not trained to "
            "the end, "
            "or --samples are too few, and hawq takes bits away there"
        )
    return linear_objective(
        problem,
        weighed_errors(problem, traces),
        estimator="Hutchinson",
        value_name="twice the loss",
        random=True,
        stop_reason="number of probes",
    )


def mean_traces(
    task: Task,
    traced: TracedModel,
    units: Sequence[Unit],
    batches: Sequence[Batch],
    probes: int,
    seed: int = 0,
    device: str = "cpu",
    advance: Callable[[], None] = lambda: None,
) -> dict[str, npt.NDArray[Any]]:
    """Return by unit path `[batches * probes]` independent estimates of Tr(H) / n of its weight; their mean is
    unbiased.

    H is that of the mean loss over all samples. Hutchinson 1989: E[z' H z] = Tr(H) for random signs z. Each estimate is
    of one batch, so that their spread holds that of the data too. Each layer gets a z of its own: one over all layers
    would need one pass for all of them, but on the digits network its standard errors are 2 to 27 times as large.
    UserError when the loss has no second derivative.
    """
    import numpy as np
    import torch

    from calib.network.execution import Edits
    from smpq.training.placing import batch_on, graph_on

    placed, generator = graph_on(traced, device), torch.Generator().manual_seed(seed)
    leaves = {unit.weight: placed.state[unit.weight].detach().clone().requires_grad_() for unit in units}
    edits = Edits(sources=_layouts(traced), parameters=leaves)
    count = sum(len(batch.inputs[0]) for batch in batches)
    found: dict[str, list[float]] = {name: [] for name in leaves}
    for batch in batches:
        gradients = _gradients(task, placed, batch_on(batch, device), edits)
        weight = len(batch.inputs[0]) / count * len(batches)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            for _ in range(probes):
                sign = _signs(leaf, generator)
                curvature = (sign.double() * _product(gradient, leaf, sign).double()).sum()
                found[name].append(weight * float(curvature) / leaf.numel())
            advance()
    return {unit.path: np.array(found[unit.weight]) for unit in units}


def _layouts(traced: TracedModel) -> dict[str, Edit]:
    """Edits that give the results of attention the order in memory of the trace: not every kernel gives the same."""
    from calib.network.nodes import operator_name

    def edit(strides: Sequence[int]) -> Edit:
        order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
        back = [order.index(axis) for axis in range(len(order))]
        return lambda tensor: tensor.permute(order).contiguous().permute(back)

    attention = [node for node in traced.steps if operator_name(node) == "scaled_dot_product_attention"]
    return {node.name: edit(node.meta["val"].stride()) for node in attention}


def _gradients(task: Task, traced: TracedModel, batch: Batch, edits: Edits) -> tuple[Tensor, ...]:
    """Return the gradients of the mean loss, recorded so that they can be differentiated again."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second derivative
        output = traced.run(batch.inputs, edits, gradient=True)
        mean = torch.as_tensor(task.loss(output, batch.target)).mean()
    if not mean.requires_grad:
        raise UserError("the task's loss() cannot be differentiated: compute it with torch from the output as given")
    leaves = tuple(edits.parameters.values())
    return torch.autograd.grad(mean, leaves, create_graph=True, materialize_grads=True)


def _product(gradient: Tensor, leaf: Tensor, sign: Tensor) -> Tensor:
    """Return H z of one layer."""
    import torch

    if not gradient.requires_grad:  # the loss is linear in the weights
        return torch.zeros_like(sign)
    try:
        (product,) = torch.autograd.grad(gradient, leaf, sign, retain_graph=True, materialize_grads=True)
    except RuntimeError as error:
        raise UserError(
            f"the loss cannot be differentiated twice ({first_line(error)}): use a --method that needs no gradients"
        ) from error
    return product


def _signs(like: Tensor, generator: Any) -> Tensor:
    import torch

    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.float32) * 2 - 1
    return signs.to(like.device)


def _parts(problem: SearchProblem) -> list[Batch]:
    """The batches that policies are judged on, cut into parts whose activations fit where their gradients are kept."""
    from smpq.value.parts import split

    return split(problem.judging, _SAMPLES_AT_ONCE) if problem.traced.dynamic_batch else list(problem.judging)
