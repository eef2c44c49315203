"""A method that trains and lives in the tests alone: nothing in the package knows of it."""

from __future__ import annotations

from dataclasses import replace

from smpq.methods import Need, SearchProblem, Solution, method
from smpq.problem.policy import Policy
from smpq.training.finetune import finetune


@method("narrowest", paper="none", cost="two steps", needs=(Need.TRAINING_DATA,), epochs=1)
def narrowest(problem: SearchProblem) -> Solution:
    """Every layer gets its smallest format, and is trained for two steps."""
    size = problem.costs["size"].parts
    policy = Policy(
        {name: min(row, key=lambda chosen: size[name][chosen]) for name, row in problem.space.formats.items()}
    )
    how = replace(problem.training, steps=2)
    return Solution(policy, finetune(problem.subject(policy), problem.batches, how), ("two steps are few",))
