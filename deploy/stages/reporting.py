"""Report: gather what the files of a run say into `report.json`: the plan, the proof, and where every number came from.

Reads files alone: no task is imported and no model loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from msgspec.structs import asdict

from calib.tasks import IN_MEMORY
from deploy.backends import backend_of
from deploy.devices.address import is_here
from deploy.files.engine import LatencyFile
from deploy.files.loop import LoopFile, StepRow
from deploy.files.report import (
    MOST_SHOWN,
    CurvePoint,
    DestinationPart,
    LayerRow,
    ReportedStep,
    ReportFile,
    ScoresPart,
)
from deploy.files.search import CalibrationFile
from deploy.files.synthetic import SyntheticFile
from deploy.files.verification import STAGES
from deploy.latency.history import ended_early, steps_for
from deploy.report.speed import asks_for_speed, faster
from deploy.run.directory import Run
from deploy.run.settings import options_of
from deploy.stages.finetuning import read_record, trained_by
from deploy.stages.limits import limit_rows
from deploy.stages.recorded import Recorded
from deploy.targets.offers import offer
from deploy.targets.target import Target, target_from_name
from smpq.files import Interval
from smpq.methods import DEFAULT_METHOD, method_from_name
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
    limits = limit_rows(read)
    means = read.verification.means if read.verification is not None else {}
    names = backend_of(read.target).names
    loop, calibration = run.find(LoopFile), run.find(CalibrationFile)
    report = ReportFile(
        task=settings.task,
        target=read.target.name,
        destination=_destination(read.target),
        engine=_existing(run, names.engines),
        float_engine=_existing(run, names.float_engines),
        policy={path: str(chosen) for path, chosen in policy.by_unit(read.space.groups).items()},
        is_float=_is_float(read),
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
        notes=calibration.notes if calibration is not None else (),
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
    if not is_here(read.record.address):
        options["--device"] = (read.record.address,)
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
    there = read.target.timed and not is_here(read.record.address)
    here = None if there else backend_of(read.target).why_not_timed()
    return here or "the engine has not been measured yet: use smpq measure"


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


def _is_float(read: Recorded) -> bool:
    """Whether no layer has another format than in the float engine."""
    return set(read.policy.formats.values()) <= {read.space.reference}


def _speed_warning(read: Recorded) -> Iterator[str]:
    """Say that the engine is not faster than the float one, and what to do where the budget wants speed."""
    if read.latency is None or _is_float(read) or faster(read.latency.interval) == "yes":
        return
    ratio = f"{read.latency.ratio:.3f}x"
    if faster(read.latency.interval) == "unknown":
        yield f"no difference to the time of the float engine can be shown ({ratio})"
        return
    limits = read.budget.limits if read.budget is not None else ()
    instead = f": deploy {read.target.reference} instead" if asks_for_speed([each.cost for each in limits]) else ""
    yield f"the engine is slower than the float engine ({ratio}){instead}"


def _warnings(read: Recorded) -> tuple[str, ...]:
    found = [*_speed_warning(read)]
    disagreeing = [path for path, kernel in read.kernels.items() if not kernel.agrees]
    if disagreeing:
        found.append(f"{len(disagreeing)} layers do not run in their planned format: {', '.join(disagreeing[:5])}")
    verification = read.verification
    if verification is not None and verification.lost_at in {"float", "onnx", "engine"}:
        found.append(verification.explanation)
    return tuple(found)
