"""Score: what every format of every layer contributes. Writes `scores.json`; `space.json` and `costs.json` say what may be chosen."""

from __future__ import annotations

from deploy.prepare import Prepared
from deploy.run.spaces import file_from_costs, file_from_space
from smpq.allocate import Ceiling
from smpq.budget import Budget
from smpq.files import ScoresFile
from smpq.scores import Scores
from smpq.shapley import Stopping, estimate
from smpq.stability import UntilStable

_CONTEXT_SPREAD = 0.15


def score(prepared: Prepared, budget: Budget | None = None) -> Scores:
    """Estimate the contributions, or read them when the run has them. Writes `scores.json`.

    A budget on bits or size only says where contexts are drawn; the scores serve every other budget too.
    """
    run, settings = prepared.run, prepared.settings
    known = run.find(ScoresFile)
    if known is not None:
        scores = Scores.from_file(known, prepared.space)
        prepared.progress.say(f"scores: {scores.permutations} permutations, read from {run.file(known.NAME)}")
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
    run.write(scores.to_file())
    return scores


def write_space(prepared: Prepared) -> None:
    """Write what may be chosen, what was refused and why, and what each choice costs."""
    prepared.run.write(file_from_space(prepared.space, prepared.skipped, prepared.refused))
    prepared.run.write(file_from_costs(prepared.costs))


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
