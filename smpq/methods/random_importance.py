"""The baseline of every sensitivity: which layers matter is drawn by lot, and the budget is used like anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.methods.base import method
from smpq.methods.problem import Objective, SearchProblem, linear_objective

if TYPE_CHECKING:
    from calib.formats.format import Format


@method("random", paper="a baseline", cost="none", searched=False, latency=False)
def random(problem: SearchProblem) -> Objective:
    """A random importance for each layer, by --seed, times the error that the bits of a format leave.

    The importance is drawn from an exponential distribution of mean 1. The error of b bits is 4 ** -b, that of a
    uniform quantiser up to a factor, for weights and for activations. The policy is the best one within the budget for
    these values.
    """
    import numpy as np

    generator, space = np.random.default_rng(problem.seed), problem.space
    samples = {}
    for group in space.groups:
        importance = float(generator.exponential())
        for chosen in space.formats[group.name]:
            if chosen != space.reference:
                samples[group.name, chosen] = (-importance * _error(chosen),)
    return linear_objective(
        problem, samples, estimator="random importance", value_name="random units", stop_reason="drawn once"
    )


def _error(chosen: Format) -> float:
    weight: float = 4.0**-chosen.weight_bits
    return weight + (4.0**-chosen.activation_bits if chosen.quantizes_activation else 0.0)
