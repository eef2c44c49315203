"""A method that lives in the tests alone: nothing in the package knows of it."""

from __future__ import annotations

from smpq.methods import Objective, SearchProblem, linear_objective, method


@method("alphabetical", paper="none", cost="none")
def alphabetical(problem: SearchProblem) -> Objective:
    """Layers late in the alphabet matter more."""
    rank = {name: number for number, name in enumerate(sorted(problem.space.formats), 1)}
    samples = {
        (group, chosen): (rank[group] * (chosen.weight_bits - problem.space.reference.weight_bits) / 32.0,)
        for group, row in problem.space.formats.items()
        for chosen in row
        if chosen != problem.space.reference
    }
    return linear_objective(problem, samples, estimator="alphabet", value_name="letters")
