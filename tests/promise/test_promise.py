"""100 generated networks: each becomes an engine that agrees with the user's eager module, or is refused with one
message. SMPQ_PROMISE=300 tries that many; `benchmarks/promise.py` tries others.
"""

from __future__ import annotations

import os

import pytest

from tests.promise.networks import generated, recipe_from_seed
from tests.promise.promise import check, smallest

NETWORKS = 10
"""Of one test."""
CHUNKS = -(-int(os.environ.get("SMPQ_PROMISE", "100")) // NETWORKS)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_network_agrees_or_is_refused(chunk):
    """Seeds and not an engine of random examples: what that draws depends on the modules that other tests have
    imported.
    """
    seeds = range(chunk * NETWORKS, (chunk + 1) * NETWORKS)
    recipes = [recipe_from_seed(seed) for seed in seeds]
    outcomes = [check(generated(recipe)) for recipe in recipes]
    for recipe, outcome in zip(recipes, outcomes, strict=True):
        if not outcome.kept:
            fewer, found = smallest(recipe, outcome.kind)
            pytest.fail(f"seed {recipe.seed}: {outcome}\nsmallest: {fewer}\n{found}\n{generated(fewer).module}")
    ordinary = [
        outcome.kind
        for recipe, outcome in zip(recipes, outcomes, strict=True)
        if not (recipe.odd or recipe.several_sizes)
    ]
    assert ordinary.count("agrees") * 2 >= len(ordinary), "the tool refuses what it should build"
