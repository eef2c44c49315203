"""A quantisation plan on a trainable graph: which learned quantiser stands where, and where the weights start."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calib.formats.quantizers import ActivationQuantizer, QuantizedWeight
from calib.network.graph import TracedModel
from calib.network.units import Unit
from smpq.quantized.plan import QuantPlan
from smpq.training.lsq import (
    CastWeight,
    FixedActivation,
    LearnedActivation,
    LearnedWeight,
    TrainedQuantizer,
    check_learned,
)
from smpq.training.trainable import TrainableGraph

_MARGIN = 0.45
"""How far from its integer, in steps, a weight may start: 0.5 would let the first gradient turn it over."""

Activation = FixedActivation | LearnedActivation


def attach_plan(
    graph: TrainableGraph,
    plan: QuantPlan,
    learn_activations: bool | None = None,
    start: str = "nearby",
    kind: type[LearnedWeight] = LearnedWeight,
) -> dict[tuple[str, int], Activation]:
    """Put the quantisers of a plan on a graph, and its weights where they start; returns those of activations by
    (tensor, bits). `kind` is the class of the quantisers of weights.
    """
    check_learned(plan.formats.values())
    weights: dict[str, TrainedQuantizer] = {}
    for unit in graph.units:
        if unit.path in plan.weights:
            weights[unit.path] = _start_weight(graph, unit, plan.weights[unit.path], start, kind)
        elif plan.formats[unit.path].weight.cast(graph.weights[unit.path].detach()) is not None:
            weights[unit.path] = CastWeight(plan.formats[unit.path].weight)
    places = activations_of(graph.traced, plan, learn_activations)
    graph.attach(weights, places.sources, places.edges)
    return places.named


@dataclass(frozen=True)
class Activations:
    """The quantisers of activations: at their source by tensor, for single readers by (tensor, reader), and all of them
    by (tensor, bits). One object may stand in several places.
    """

    sources: dict[str, TrainedQuantizer]
    edges: dict[tuple[str, str], TrainedQuantizer]
    named: dict[tuple[str, int], Activation]


def activations_of(traced: TracedModel, plan: QuantPlan, learn: bool | None = None) -> Activations:
    """Return a trained quantiser for each of a plan;
    those of fewer than 8 bits learn their steps, or as `learn` says.
    """
    shared: dict[int, Activation] = {}
    found = Activations({}, {}, {})
    on_grid: dict[str, int] = {}
    for entry in plan.tensors:
        # one grid that several tensors are on (behind a slice, a pad) is one object of the plan, and one step to learn
        key = id(entry.quantizer)
        module = shared.setdefault(key, _activation(entry.quantizer, learn))
        found.named[entry.tensor, entry.quantizer.bits] = module
        if entry.consumers is not None:
            found.edges.update({(entry.tensor, consumer): module for consumer in entry.consumers})
            continue
        on_grid[entry.tensor] = key
        moved = [argument.name for argument in traced.producer(entry.tensor).all_input_nodes]
        if not any(on_grid.get(name) == key for name in moved):
            found.sources[entry.tensor] = module
    return found


def _activation(quantizer: ActivationQuantizer, learn: bool | None) -> Activation:
    return (
        LearnedActivation(quantizer) if (quantizer.bits < 8 if learn is None else learn) else FixedActivation(quantizer)
    )


def _start_weight(
    graph: TrainableGraph, unit: Unit, calibrated: QuantizedWeight, start: str, kind: type[LearnedWeight]
) -> LearnedWeight:
    """Unfold the calibrated steps, and place the weight by the calibrated integers."""
    factor = graph.factor(unit.path)
    step = calibrated.scale.to(graph.device) / factor.reshape(-1, *[1] * (calibrated.scale.dim() - 1))
    quantizer = kind(step, calibrated.type, calibrated.block)
    if start != "float":
        leaf = graph.weights[unit.path]
        spread = quantizer.spread(leaf)
        integers = calibrated.values.to(graph.device).float()
        margin = _MARGIN if start == "nearby" else 0.0
        with torch.no_grad():
            scaled = leaf / spread
            low, high = quantizer.limits
            lowest = torch.where(integers == low, torch.minimum(scaled, integers), integers - margin)
            highest = torch.where(integers == high, torch.maximum(scaled, integers), integers + margin)
            leaf.copy_((scaled if start == "nearby" else integers).clamp(lowest, highest) * spread)
    return quantizer
