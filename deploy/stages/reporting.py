"""Report: gather what the files of a run say into `report.json`: the plan, the proof, and where every number came from.

Reads files alone: no task is imported and no model loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from msgspec.structs import asdict

from calib.errors import UserError
from calib.tasks import IN_MEMORY
from deploy.backends import backend_of
from deploy.files.engine import LatencyFile
from deploy.files.loop import LoopFile, StepRow
from deploy.files.report import (
    MOST_SHOWN,
    CurvePoint,
    DestinationPart,
    LayerRow,
    LimitRow,
    ReportedStep,
    ReportFile,
    ScoresPart,
)
from deploy.files.search import CostsFile
from deploy.files.synthetic import SyntheticFile
from deploy.files.verification import STAGES
from deploy.latency.history import ended_early, steps_for
from deploy.run.directory import Run
from deploy.run.settings import options_of
from deploy.stages.finetuning import read_record, trained_by
from deploy.stages.recorded import COST_UNITS, Recorded
from deploy.targets.offers import offer
from deploy.targets.target import Target, target_from_name
from smpq.files import Interval
from smpq.methods import DEFAULT_METHOD, method_from_name
from smpq.problem.budget import LOSSES, Limit
from smpq.scoring.stability import CUT_SHORT
from smpq.solve.allocate import Ceiling, Impossible, worth
from smpq.training.settings import FineTuneSettings

_CURVE_POINTS = 12
_ORIN = "jetson-orin"


def write_report(run: Run, seconds: Mapping[str, float]) -> ReportFile:
    """Read the files of the run's stages and write `report.json`; what a stage has not made yet is None.

    `seconds` is what the stages of this command took. UserError when a file is damaged, or when there is no policy yet.
    """
    read = Recorded(run)
    policy, settings = read.policy, read.record.settings
    reached = {name: model.total(policy) for name, model in read.costs.items()}
    limits = _limits(read)
    means = read.verification.means if read.verification is not None else {}
    names = backend_of(read.target).names
    loop = run.find(LoopFile)
    report = ReportFile(
        task=settings.task,
        target=read.target.name,
        destination=_destination(read.target),
        engine=_existing(run, names.engines),
        float_engine=_existing(run, names.float_engines),
        policy={path: str(chosen) for path, chosen in policy.by_unit(read.space.groups).items()},
        accuracy={name: means.get(name) for name in STAGES},
        verification=read.verification,
        latency=read.latency,
        latency_note=None if read.latency is not None else _why_no_latency(read),
        size_bytes=reached["size"],
        float_size_bytes=read.costs["size"].float_total,
        avg_bits=reached["avg_bits"],
        bops=reached["bops"],
        float_bops=read.costs["bops"].float_total,
        budget=str(read.budget) if read.budget is not None else "",
        limits=limits,
        met=bool(limits) and all(limit.met is True for limit in limits),
        layers=_layers(read),
        stability=read.stability,
        contributions=read.contributions,
        cut_short=_cut_short(read, loop),
        observations=tuple(map(_observation, steps_for(loop, str(read.budget))[-MOST_SHOWN:])),
        pareto=_pareto(read),
        curve=read.curve,
        scores=_provenance(read),
        skipped=read.space_file.skipped,
        refused=read.space_file.refused,
        not_on_orin=_not_on_orin(read),
        sizes=read.space_file.sizes,
        synthetic=run.find(SyntheticFile),
        warnings=_warnings(read),
        finetuning=read_record(run),
        tuning=read.tuning,
        settings=asdict(settings),
        options=_options(read),
        versions=read.record.versions,
        machine=read.latency.machine if read.latency is not None else None,
        seconds={name: round(value, 1) for name, value in seconds.items()},
    )
    run.write(report)
    return report


def _options(read: Recorded) -> dict[str, tuple[str, ...]]:
    """Return what `smpq run` is given to do this again."""
    if read.record.settings.task == IN_MEMORY:
        return {}
    options, tuned = options_of(read.record.settings), read_record(read.run)
    if read.scores is not None and read.scores.method != DEFAULT_METHOD:
        options["--method"] = (read.scores.method,)
    if tuned is not None:
        method = tuned.settings.get("method")
        if method is not None:
            options["--method"] = (str(method),)
        loss = tuned.settings.get("reconstruction")
        if loss is not None:
            options["--reconstruct"] = (str(loss),)
            return options
        options["--finetune"] = (str(tuned.settings.get("epochs", FineTuneSettings.epochs)).removesuffix(".0"),)
    return options


def _cut_short(read: Recorded, loop: LoopFile | None) -> bool:
    return ended_early(loop, str(read.budget)) or (read.scores is not None and read.scores.stop_reason == CUT_SHORT)


def _destination(target: Target) -> DestinationPart:
    return DestinationPart(
        needs_gpu=target.needs_gpu,
        timed=target.timed,
        portable=bool(target.providers),
        compute_capabilities=target.compute_capabilities,
    )


def _existing(run: Run, names: Mapping[str, str]) -> str | dict[str, str] | None:
    there = {sm: name for sm, name in names.items() if run.has(name)}
    return there.get("", there) or None


def _why_no_latency(read: Recorded) -> str:
    if read.run.has(LatencyFile.NAME):
        return "the measured engine was of another policy or other weights: use smpq build and smpq measure"
    return backend_of(read.target).why_not_timed() or "the engine has not been measured yet: use smpq measure"


def _limits(read: Recorded) -> tuple[LimitRow, ...]:
    rows = []
    for limit in read.budget.limits if read.budget is not None else ():
        if limit.cost in LOSSES:
            rows.append(_loss_row(read, limit))
            continue
        if limit.cost == "latency":
            unit = "x" if limit.relative else "ms"
            scale = 1.0 if limit.relative or read.latency is None else read.latency.float_ms
            reached = read.latency.ratio * scale if read.latency is not None else None
            met = read.latency.interval.high * scale <= limit.value if read.latency is not None else None
        else:
            model = read.costs[limit.cost]
            unit = "x" if limit.relative else COST_UNITS[limit.cost]
            total = model.total(read.policy)
            if limit.relative and not model.float_total:
                file = read.run.file(CostsFile.NAME)
                raise UserError(
                    f"{file} gives the float model no {limit.cost}, of which {limit} is a share: use "
                    f"{CostsFile.MADE_BY} again"
                )
            reached = total / (model.float_total if limit.relative else 1.0)
            met = total <= limit.absolute(model.float_total) * (1 + 1e-9)
        rows.append(LimitRow(cost=limit.cost, limit=limit.value, reached=reached, unit=unit, met=met))
    return tuple(rows)


def _loss_row(read: Recorded, limit: Limit) -> LimitRow:
    """What the policy was shown to lose before it was chosen; the evaluation data have no say in it."""
    found = read.loss
    if found is None:
        return LimitRow(cost=limit.cost, limit=limit.value, reached=None, unit="x" if limit.relative else "", met=None)
    return LimitRow(cost=limit.cost, limit=found.limit, reached=found.mean, unit=found.unit, met=found.met)


def _layers(read: Recorded) -> tuple[LayerRow, ...]:
    rows = []
    for group in read.space.groups:
        chosen = read.policy[group.name]
        entry = read.scores.entries[group.name].get(chosen) if read.scores is not None else None
        for unit in group.units:
            kernel = read.kernels.get(unit.path)
            rows.append(
                LayerRow(
                    path=unit.path,
                    operator=unit.operator,
                    parameters=unit.parameters,
                    macs=unit.macs,
                    format=str(chosen),
                    bits=chosen.weight_bits,
                    score=entry.value if entry else None,
                    standard_error=entry.standard_error if entry else None,
                    interval=Interval(*entry.interval) if entry else None,
                    samples=entry.samples if entry else None,
                    alone=entry.alone if entry else None,
                    kernel=kernel.kernel if kernel else None,
                    kernel_agrees=kernel.agrees if kernel else None,
                )
            )
    return tuple(rows)


def _observation(step: StepRow) -> ReportedStep:
    return ReportedStep(
        label=step.label,
        predicted=step.predicted,
        predicted_interval=step.predicted_interval,
        measured=step.measured,
        measured_interval=step.measured_interval,
        refused=step.refused,
        met=step.met,
    )


def _pareto(read: Recorded) -> tuple[CurvePoint, ...]:
    """Re-solve for budgets over the whole range of average bits; the value is what the scores predict."""
    if read.scores is None:
        return ()
    model, space = read.costs["avg_bits"], read.space
    low, high = (
        sum(pick(model.parts[group.name][chosen] for chosen in space.formats[group.name]) for group in space.groups)
        for pick in (min, max)
    )
    points: dict[float, float] = {}
    values, method = read.scores.objective(), method_from_name(read.scores.method)
    for step in range(_CURVE_POINTS):
        limit = low + (high - low) * step / (_CURVE_POINTS - 1)
        with suppress(Impossible):
            policy = method.policy(space, read.scores, [Ceiling(model, max(limit, 1e-9))], quick=True)
            points[model.total(policy)] = worth(values, policy)
    return tuple(CurvePoint(cost="avg_bits", reached=reached, value=value) for reached, value in sorted(points.items()))


def _provenance(read: Recorded) -> ScoresPart:
    scores, settings = read.scores, read.record.settings
    if scores is None:
        method = trained_by(read.run)
        return ScoresPart(
            method=method or "none",
            value=settings.value,
            estimator="none" if method is None else "trained",
            evaluations=0,
            permutations=0,
            seed=settings.seed,
            stop_reason="not scored",
            notes=(),
        )
    return ScoresPart(
        method=scores.method,
        value=scores.value_name,
        estimator=scores.estimator,
        evaluations=scores.evaluations,
        permutations=scores.permutations,
        seed=scores.seed,
        stop_reason=scores.stop_reason,
        notes=scores.notes,
    )


def _not_on_orin(read: Recorded) -> tuple[str, ...]:
    """Return the formats of the plan that Orin's GPU has no kernels for, by its capability table."""
    orin, formats = target_from_name(_ORIN), read.policy.by_unit(read.space.groups)
    chosen = [(unit, formats[unit.path]) for unit in read.space.units]
    lacking = {
        f"{found} on {unit.operator}"
        for unit, found in chosen
        if offer(orin, unit, found).status in ("refused", "dequantized")
    }
    return tuple(sorted(lacking))


def _warnings(read: Recorded) -> tuple[str, ...]:
    found = []
    if (
        read.latency is not None
        and read.latency.interval.high >= 1.0
        and read.policy.key() != read.space.uniform(read.space.reference).key()
    ):
        found.append(
            f"the engine is not faster than the float engine ({read.latency.ratio:.3f}x): deploy "
            f"{read.target.reference} instead"
        )
    disagreeing = [path for path, kernel in read.kernels.items() if not kernel.agrees]
    if disagreeing:
        found.append(f"{len(disagreeing)} layers do not run in their planned format: {', '.join(disagreeing[:5])}")
    verification = read.verification
    if verification is not None and verification.lost_at in {"float", "onnx", "engine"}:
        found.append(verification.explanation)
    return tuple(found)
