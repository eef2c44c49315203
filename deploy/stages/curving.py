"""The curve: engines across the whole range, what each costs and how accurate it is. Writes `curve.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from calib.errors import UserError
from deploy.files.curve import MOST_ENGINES, CurveFile, JudgedPoint, PointRow, is_dominated
from deploy.run.workspace import Workspace
from deploy.stages.curve_engines import Drawn, Engine, measured_engines, shown, sized_engines
from deploy.stages.judging import Judge
from deploy.stages.scoring import method_of, score
from smpq.problem.policy import Policy
from smpq.scoring.scores import Scores


def draw_curve(workspace: Workspace, most: int = MOST_ENGINES) -> CurveFile:
    """Measure engines across the whole range of latency, `most` with those that the run knows, and how accurate each is
    on the evaluation data. Where engines cannot be timed, size stands for latency, and the fake-quantised model for
    the engine.

    A curve that was stopped goes on: nothing is measured twice, and a point keeps its name. Scores first where the run
    has none; UserError when its method does not search.
    """
    scores = score(workspace)
    method_of(scores).check_latency()
    judge = Judge(workspace)
    earlier = _earlier(workspace, judge.content)
    drawn = _drawn(workspace, scores, most, earlier)
    known = {_key(workspace, row): row for row in earlier.points} if earlier is not None else {}
    engines = shown(drawn.engines, most, frozenset(known))
    engines = sorted(engines, key=lambda engine: (engine.ratio, engine.key))
    names = _names(engines, known)
    judged = {name: known[key].judged for key, name in names.items() if key in known}
    waiting = [engine for engine in engines if judged.get(names[engine.key]) is None]
    if waiting:  # what is wrong with the float model, or with the data, is wrong for all
        judge.run_float()
    for engine in waiting:
        name = names[engine.key]
        _write(workspace, drawn, engines, names, judged, judge)
        try:
            judged[name] = _judged(judge, engine, name)
        except UserError as error:
            workspace.progress.warn(f"{name} is left out: {error}")
            names.pop(engine.key)
    return _write(workspace, drawn, engines, names, judged, judge)


def _drawn(workspace: Workspace, scores: Scores, most: int, earlier: CurveFile | None) -> Drawn:
    if workspace.not_measurable is None:
        return measured_engines(workspace, scores, most, earlier)
    workspace.progress.say(f"{workspace.not_measurable}: size stands for latency, and engines are simulated")
    return sized_engines(workspace, scores, most, earlier)


def _earlier(workspace: Workspace, evaluation: str) -> CurveFile | None:
    """Return the run's curve, None where there is none of this machine; nothing of it is judged where the evaluation
    data are others.
    """
    record = workspace.run.find(CurveFile)
    machine = workspace.bench.machine if workspace.not_measurable is None else None
    if record is None or record.machine != machine:
        return None
    if record.evaluation == evaluation:
        return record
    return replace(record, points=tuple(replace(row, judged=None, dominated=False) for row in record.points))


def _key(workspace: Workspace, row: PointRow) -> str:
    if row.policy is None:
        return row.kind
    with workspace.run.about(CurveFile):
        return Policy.from_file(row.policy, workspace.space).key()


def _names(engines: Sequence[Engine], known: Mapping[str, PointRow]) -> dict[str, str]:
    """Return the name of each engine by its key: the one that it has, or the next number; the cheapest comes first."""
    names = {key: row.name for key, row in known.items()}
    number = max((int(name[1:]) for name in names.values()), default=0)
    for engine in engines:
        if engine.key not in names:
            number += 1
            names[engine.key] = f"P{number}"
    return {engine.key: names[engine.key] for engine in engines}


def _judged(judge: Judge, engine: Engine, name: str) -> JudgedPoint:
    if engine.policy is not None:
        return judge.of_policy(engine.policy, name)
    assert engine.model is not None
    return judge.of_candidate(engine.model, name)


def _write(
    workspace: Workspace,
    drawn: Drawn,
    engines: Sequence[Engine],
    names: Mapping[str, str],
    judged: Mapping[str, JudgedPoint | None],
    judge: Judge,
) -> CurveFile:
    timed = workspace.not_measurable is None
    rows = tuple(
        PointRow(
            name=names[engine.key],
            kind=engine.kind,
            policy=engine.policy.to_file(workspace.space.groups) if engine.policy is not None else None,
            ratio=engine.ratio,
            ratio_interval=engine.interval,
            ms=engine.ratio * drawn.float_cost if timed else None,
            size_bytes=engine.size_bytes,
            value=engine.value,
            judged=judged.get(names[engine.key]),
            dominated=False,
        )
        for engine in engines
        if engine.key in names
    )
    record = CurveFile(
        cost="latency" if timed else "size",
        machine=workspace.bench.machine if timed else None,
        not_timed=workspace.not_measurable,
        float_cost=drawn.float_cost,
        metric=workspace.task.metric_name,
        samples=judge.samples,
        evaluation=judge.content,
        stop_reason=drawn.stop_reason,
        points=tuple(replace(row, dominated=is_dominated(row, rows)) for row in rows),
    )
    workspace.run.write(record)
    return record
