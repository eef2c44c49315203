"""The section of a report with the curve: its plot, and a row for each engine."""

from __future__ import annotations

from deploy.files.curve import CurveFile, JudgedPoint, PointRow
from deploy.report.curve_plot import curve_plot, short_plan
from deploy.report.section import Section
from deploy.report.wording import change, counted, fixed, number, signed, size, span
from smpq.files import SHARES


def curve_section(curve: CurveFile) -> Section:
    """Return the plot and the table."""
    timed, metric = curve.cost == "latency", curve.metric
    columns = [("point", "number"), ("engine", "word"), (f"share of {'float' if timed else 'fp32'}", "number")]
    columns += [("95 % interval", "number"), ("ms", "number")] if timed else []
    columns += [(metric, "number"), ("against float", "number"), ("95 % interval", "number")]
    columns += [("size", "number"), ("plan", "text")]
    rows = [_row(point, point.judged, metric) for point in curve.points if point.judged is not None]
    return Section(
        f"{'Latency' if timed else 'Size'} against accuracy",
        note=_note(curve),
        figure=curve_plot(curve),
        caption="Bars are 95 % intervals, that of the accuracy of its difference to the float model, sample by sample. "
        "Pale: another engine is as cheap and as accurate, and better in one of the two.",
        columns=columns,
        rows=rows,
        text=f"No more points: {curve.stop_reason}.",
    )


def _row(point: PointRow, judged: JudgedPoint, metric: str) -> list[str]:
    timed = [] if point.ratio_interval is None else [span(point.ratio_interval), number(point.ms)]
    ends = judged.change_interval
    accuracy = f"{100 * judged.accuracy:.2f} %" if metric in SHARES else signed(f"{judged.accuracy:.4g}")
    return [
        point.name,
        f"{point.kind}, dominated" if point.dominated else point.kind,
        fixed(point.ratio),
        *timed,
        accuracy,
        change(judged.change, metric),
        f"{change(ends.low, metric)} to {change(ends.high, metric)}",
        "–" if point.size_bytes is None else size(point.size_bytes),
        short_plan(point) or "–",
    ]


def _note(curve: CurveFile) -> str:
    """Say what was measured and what was not."""
    judged = [point.judged for point in curve.points if point.judged is not None]
    simulated = any(each.measured_on == "fake_quant" for each in judged)
    through = "simulated, through the fake-quantised model" if simulated else "through the engine itself"
    data = f"{curve.metric} on {counted(curve.samples, 'evaluation sample')}, {through}"
    cost = f"Timed on {curve.machine}" if curve.machine else f"Not timed: {curve.not_timed}. Size stands for latency"
    return f"{cost}; {data}. smpq take RUN POINT makes a point the policy of the run."
