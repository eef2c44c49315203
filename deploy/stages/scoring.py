"""Score: what every format of every layer contributes. Writes `space.json`, `costs.json` and `scores.json`."""

from __future__ import annotations

from deploy.prepare import Prepared
from smpq.allocate import Ceiling
from smpq.budget import Budget
from smpq.scores import Scores
from smpq.shapley import Stopping, estimate
from smpq.stability import UntilStable

_CONTEXT_SPREAD = 0.15


def score(prepared: Prepared, budget: Budget | None = None) -> Scores:
    """Estimate the contributions, or read them when the run has them. Writes `scores.json` and `space.json`.

    A budget on bits or size only says where contexts are drawn; the scores serve every other budget too.
    """
    run, settings = prepared.run, prepared.settings
    write_space(prepared)
    if run.has("scores.json"):
        scores = Scores.from_json(run.read_json("scores.json"), prepared.space)
        prepared.progress.say(f"scores: {scores.permutations} permutations, read from {run.file('scores.json')}")
        return scores
    bits = _context_bits(prepared, budget)
    evaluator = prepared.evaluator
    evaluations = settings.spending.scoring
    stable = UntilStable(prepared.space, static_ceilings(prepared, budget), settings.seed) if budget and settings.stable else None
    with prepared.progress.bar("score", evaluations or prepared.space.moves()) as advance:
        scores = estimate(
            evaluator,
            prepared.space,
            Stopping(evaluations, settings.precision),
            settings.seed,
            bits,
            lambda _: advance(),
            settings.value,
            stable,
        )
    run.write_json("scores.json", scores.to_json())
    return scores


def write_space(prepared: Prepared) -> None:
    """Write what may be chosen, what was refused and why, and what each choice costs."""
    groups = prepared.space.groups
    record = {
        "schema": 1,
        "groups": {
            group.name: {
                "units": [unit.to_json() for unit in group.units],
                "formats": [str(chosen) for chosen in prepared.space.formats[group.name]],
            }
            for group in groups
        },
        "reference": str(prepared.space.reference),
        "policies": prepared.space.size(),
        "skipped": [vars(entry) for entry in prepared.skipped],
        "refused": prepared.refused,
    }
    prepared.run.write_json("space.json", record)
    costs = {
        name: {
            "fixed": model.fixed,
            "float_total": model.float_total,
            "parts": {group: {str(chosen): cost for chosen, cost in row.items()} for group, row in model.parts.items()},
        }
        for name, model in prepared.costs.items()
    }
    prepared.run.write_json("costs.json", {"schema": 1, "costs": costs})


def static_ceilings(prepared: Prepared, budget: Budget) -> list[Ceiling]:
    """Return the limits on costs that need no measurement."""
    return [
        Ceiling(prepared.costs[limit.cost], limit.absolute(prepared.costs[limit.cost].float_total))
        for limit in budget.limits
        if limit.cost != "latency"
    ]


def _context_bits(prepared: Prepared, budget: Budget | None) -> tuple[float, float] | None:
    """Where the budget puts the average weight bits, 15 % either way; None when it does not say."""
    limit = budget.limit("avg_bits") if budget is not None else None
    if limit is None:
        return None
    bits = limit.absolute(prepared.costs["avg_bits"].float_total)
    return bits * (1 - _CONTEXT_SPREAD), bits * (1 + _CONTEXT_SPREAD)
