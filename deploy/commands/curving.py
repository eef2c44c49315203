"""The commands about the whole range: curve, take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from calib.declared import NOT_BLANK, Declared, Group, Interval
from deploy.commands.declared_options import declared_options
from deploy.commands.options import Result, Shared, command, printed, resource_options, run_argument
from deploy.files.curve import MOST_ENGINES, CurveFile, PointRow

_LARGEST = 500


@dataclass(frozen=True)
class _Own:
    """What these commands take besides settings."""

    point: Annotated[str, Declared("the name of a point, as P3", NOT_BLANK, "POINT")]
    engines: Annotated[
        int,
        Declared(
            "most engines, those that the run has measured counted; uniform formats are measured in any case",
            Interval(1, _LARGEST),
            "--engines",
            Group.LENGTH,
        ),
    ] = MOST_ENGINES


@command("curve")
@run_argument
@declared_options(_Own, "engines")
@declared_options(Shared, "device")
@resource_options
@printed
def curve(run: Path, task: str | None, engines: int, device: str, progress: Any, resources: Any) -> Result:
    """Measure engines across the whole range, from the fastest to the float engine, and how accurate each is:
    curve.json.

    smpq report shows the curve, smpq take makes one of its points the policy of the run. Where engines cannot be timed,
    size stands for latency. The same command goes on where it stopped; with more --engines the curve gets finer.
    """
    from deploy.stages.curving import draw_curve
    from deploy.stages.run_all import open_run

    with open_run(run, progress, resources=resources, device=device, task=task) as workspace:
        record = draw_curve(workspace, engines)
    said = [f"size stands for latency: {record.not_timed}"] if record.not_timed is not None else []
    lines = [*said, *(_line(point, record.metric) for point in record.points), f"no more points: {record.stop_reason}"]
    return record, [*lines, f"curve: {run / 'curve.json'}; smpq take RUN POINT makes a point the policy"], 0


@command("take")
@declared_options(Shared, "run")
@declared_options(_Own, "point")
@printed
def take(run: Path, point: str, progress: Any) -> Result:
    """Make a point of the curve the policy of the run: policy.json. Go on with smpq export, build, measure, verify and
    report, as after smpq solve.

    It was chosen for no budget, so budget.json is removed.
    """
    from calib.files.storage import plain
    from deploy.run.directory import Run
    from deploy.stages.taking import take_point

    del progress  # nothing takes long here
    found = take_point(run, point)
    metric = Run(run).read(CurveFile).metric
    return plain(found), [f"policy: {run / 'policy.json'} ({_line(found, metric)})"], 0


def _line(point: PointRow, metric: str) -> str:
    """Return what a point costs and how accurate it is."""
    from deploy.report.wording import change, measure

    whole = "fp32's size" if point.ms is None else "float"
    parts = [f"{point.name}: {point.ratio:.3f}x of {whole}"]
    if point.ratio_interval is not None:
        parts.append(f"({point.ratio_interval.low:.3f} to {point.ratio_interval.high:.3f}), {point.ms:.4g} ms")
    if point.judged is not None:
        low, high = point.judged.change_interval.low, point.judged.change_interval.high
        parts.append(f"{metric} {measure(point.judged.accuracy, point.judged.interval, metric)},")
        parts.append(
            f"{change(point.judged.change, metric)} ({change(low, metric)} to {change(high, metric)}) to float"
        )
    kinds = [point.kind] if point.kind != "found" else []
    return " ".join([*parts, *(f"[{word}]" for word in [*kinds, *(["dominated"] if point.dominated else [])])])
