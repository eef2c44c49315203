"""The engines of a curve: measured across the whole range of latency, or simulated across that of sizes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.backends.base import BuildFailed
from deploy.devices.base import Candidate
from deploy.files.curve import CurveFile, PointKind
from deploy.latency.curve import CurveLoop
from deploy.latency.ladder import Ladder, Rung, frontier
from deploy.latency.observed import Observation
from deploy.latency.steps import Goal, LoopSettings, StopReason
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import Workspace
from deploy.targets.offers import may_fail
from smpq.files import Interval
from smpq.problem.policy import Policy, Space, canonical
from smpq.scoring.scores import Scores
from smpq.solve.allocate import Ceiling, Impossible, Problem, nearest_feasible
from smpq.solve.effort import Effort
from smpq.solve.search import choose

_TINY = 1e-6
_DESIGNED = 5
_ROOM = 1 + 1e-9


@dataclass(frozen=True)
class Engine:
    """An engine of the curve. `ratio` is its time as a share of the float engine's, or its size as a share of the fp32
    model's, as everywhere in a run. Without a policy it is onnxruntime's own `model`.
    """

    kind: PointKind
    policy: Policy | None
    ratio: float
    interval: Interval | None = None
    size_bytes: float | None = None
    value: float | None = None
    model: Candidate | None = None

    @property
    def key(self) -> str:
        """What tells it from the other engines of a run."""
        return self.policy.key() if self.policy is not None else self.kind


@dataclass(frozen=True)
class Drawn:
    """All engines of a curve, what their ratios are shares of in milliseconds or bytes, and why there are no more."""

    engines: tuple[Engine, ...]
    float_cost: float
    stop_reason: str


def measured_engines(workspace: Workspace, scores: Scores, most: int, earlier: CurveFile | None) -> Drawn:
    """Measure engines across the whole range of latency, `most` with those that the run has measured already.

    Uniform formats are measured in any case. Adds to `observations.json`, so that none is measured twice; what
    onnxruntime makes by itself stands in the `earlier` curve of the same machine.
    """
    export_float_model(workspace)
    bench, observations, space = workspace.bench, workspace.observations, workspace.space
    own = _known_own(earlier) or _runtimes_own(workspace)
    known, refused = _known(workspace), observations.refusals(bench.machine)
    seen = {each.policy.key() for each in known} | {each.policy.key() for each in refused}
    missing = sum(policy.key() not in seen for policy in uniform_policies(space))
    room = max(most - len(known) - (own is not None), missing)
    loop = CurveLoop(
        space,
        workspace.edges,
        workspace.evaluator,
        Goal(math.inf, (), scores.starts(), _effort(workspace), workspace.evaluator.folds),
        known,
        LoopSettings(room, max(_DESIGNED, len(uniform_policies(space))), workspace.settings.seed),
        refused,
        doubtful=may_fail(workspace.target, space, workspace.settings.batch),
    )
    with workspace.progress.step("measure the curve"):
        while (proposal := loop.ask()) is not None:
            found = bench.observe(proposal.policy)
            loop.tell(proposal, found)
            said = f"{found.ratio:.3f}x of float" if isinstance(found, Observation) else "does not build"
            workspace.progress.say(f"{proposal.label}: {said}, predicted {proposal.predicted:.3f}")
    float_ms = observations.float_ms(bench.machine) or bench.float_ms()
    policies = [_of_observation(workspace, each) for each in _known(workspace)]
    engines = [*policies, *([own] if own is not None else [])]
    reason = f"{len(engines)} engines are measured" if loop.stop_reason == StopReason.COUNT else loop.stop_reason
    return Drawn((replace(_float(workspace, 1.0), interval=Interval(1.0, 1.0)), *engines), float_ms, reason)


def sized_engines(workspace: Workspace, scores: Scores, most: int, earlier: CurveFile | None) -> Drawn:
    """Choose policies across the whole range of sizes, `most` with those of the `earlier` curve:
    nothing is measured.
    """
    rows = earlier.points if earlier is not None else ()
    known = [Policy.from_file(row.policy, workspace.space) for row in rows if row.policy is not None]
    space, size = workspace.space, workspace.costs["size"]
    reference = space.uniform(space.reference)
    found = {policy.key(): policy for policy in (*uniform_policies(space), *known)}
    found.pop(reference.key(), None)

    def share(policy: Policy) -> float:
        return size.total(policy) / size.float_total

    def best_within(limit: float) -> Policy | None:
        ceilings = [Ceiling(size, limit * size.float_total * _ROOM)]
        try:
            value = workspace.evaluator
            choice = choose(value, space, scores.starts(), ceilings, _effort(workspace), folds=value.folds)
        except Impossible:
            return None
        return canonical(choice.policy, space)

    def is_new(policy: Policy) -> bool:
        return policy.key() not in found and policy != reference

    def rungs() -> list[Rung]:
        return [Rung(each, share(each), workspace.evaluator(each)) for each in (*found.values(), reference)]

    ladder, reason = Ladder(), f"{most} policies are chosen"
    smallest = best_within(share(nearest_feasible(Problem(space, {}, [Ceiling(size, _TINY * size.float_total)]))))
    with workspace.progress.step("choose the policies"):
        while len(found) < most:
            first = smallest if smallest is not None and is_new(smallest) else None
            policy = first or ladder.next(rungs(), best_within, is_new)
            if policy is None:
                reason = "no gap of the curve has another policy in it"
                break
            found[policy.key()] = policy
    engines = [
        replace(_of_policy(workspace, policy, share(policy)), kind=_kind(space, policy)) for policy in found.values()
    ]
    return Drawn((_float(workspace, share(reference)), *engines), size.float_total, reason)


def shown(engines: Sequence[Engine], most: int, named: frozenset[str]) -> list[Engine]:
    """Return the engines that are drawn: those that have a name, all that are no plan of a search, the best for their
    cost, and others until there are `most` besides the float model.
    """
    rungs = [Rung(each.policy, each.ratio, each.value) for each in engines if each.policy and each.value is not None]
    best = {rung.policy.key() for rung in frontier(rungs)}

    def rank(engine: Engine) -> int:
        return 0 if engine.key in named or engine.kind != "found" else 1 if engine.key in best else 2

    ranked = sorted(engines, key=rank)
    return [each for number, each in enumerate(ranked) if number <= most or each.key in named or each.kind != "found"]


def uniform_policies(space: Space) -> list[Policy]:
    """Return the policies of one format, each once, without the float one."""
    found = {policy.key(): policy for policy in (canonical(space.uniform(chosen), space) for chosen in space.offered)}
    found.pop(space.uniform(space.reference).key(), None)
    return list(found.values())


def _known(workspace: Workspace) -> list[Observation]:
    """Return what the machine has measured, the float policy aside: its ratio is 1."""
    reference = workspace.space.uniform(workspace.space.reference)
    machine = workspace.bench.machine
    return [each for each in workspace.observations.engines(machine) if each.policy != reference]


def _effort(workspace: Workspace) -> Effort:
    # what more rounds gain at one cost is less than what an engine at another cost tells
    spending = workspace.settings.spending
    return replace(spending, rounds=min(spending.rounds, 1), exchanges=min(spending.exchanges, 1))


def _float(workspace: Workspace, ratio: float) -> Engine:
    policy = workspace.space.uniform(workspace.space.reference)
    return replace(_of_policy(workspace, policy, ratio), kind="float")


def _of_observation(workspace: Workspace, found: Observation) -> Engine:
    engine = _of_policy(workspace, found.policy, found.ratio)
    interval = Interval.around(found.ratio, found.standard_error)
    return replace(engine, kind=_kind(workspace.space, found.policy), interval=interval)


def _of_policy(workspace: Workspace, policy: Policy, ratio: float) -> Engine:
    size = workspace.costs["size"].total(policy)
    return Engine("found", policy, ratio, size_bytes=size, value=workspace.evaluator(policy))


def _kind(space: Space, policy: Policy) -> PointKind:
    return "uniform" if policy in uniform_policies(space) else "found"


def _known_own(earlier: CurveFile | None) -> Engine | None:
    """Return what is known of the runtime's own quantiser, if the evaluation data have been through it."""
    for row in earlier.points if earlier is not None else ():
        if row.kind == "quantize_static" and row.judged is not None:
            return Engine(row.kind, None, row.ratio, row.ratio_interval)
    return None


def _runtimes_own(workspace: Workspace) -> Engine | None:
    """Return what the runtime's own quantiser makes of the float model, measured; None where the runtime has none, its
    engines do not run here, or it fails, which is said.
    """
    if workspace.backend.why_not_timed() is not None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "model.onnx"
        with workspace.progress.step("quantize_static"):
            settings = workspace.backend.quantize_itself(export_float_model(workspace), out, _feeds(workspace))
        if settings is None:
            return None
        if isinstance(settings, BuildFailed):
            workspace.progress.warn(f"the curve has no quantize_static, which failed: {settings.reason}")
            return None
        candidate = replace(workspace.candidates.kept(out), settings=settings)
    (result,) = workspace.bench.time([candidate])
    if result.ratio is None or result.ratio_interval is None:
        workspace.progress.warn(f"the curve has no quantize_static, whose engine does not build: {result.failed}")
        return None
    workspace.progress.say(f"quantize_static: {result.ratio:.3f}x of float")
    return Engine("quantize_static", None, result.ratio, Interval(*result.ratio_interval), model=candidate)


def _feeds(workspace: Workspace) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Yield the calibration batches by input name, in parts of the only size that the model takes where there is
    one.
    """
    traced = workspace.traced
    for batch in workspace.batches:
        count = len(batch.inputs[0])
        step = count if traced.dynamic_batch else len(traced.example[0])
        for start in range(0, count - step + 1, step):
            parts = [tensor[start : start + step].numpy() for tensor in batch.inputs]
            yield dict(zip(traced.inputs, parts, strict=True))
