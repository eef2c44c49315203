"""What people ask of an engine, answered in sentences from the report of a run."""

from __future__ import annotations

from pathlib import Path

from deploy.files.report import LatencyPart, ReportFile
from deploy.report.accuracy import same_accuracy
from deploy.report.answer import Answer, Verdict, bare, sentence, some
from deploy.report.orin import on_orin
from deploy.report.remarks import timing_remarks
from deploy.report.speed import faster, held_by_loss
from deploy.report.steps import changes, differing_kernels, predicted_well
from deploy.report.wording import counted, magnitude, number, shape, size


def answers(report: ReportFile, run: Path) -> list[Answer]:
    """Answer the five questions, in the order they are asked; `run` is the run directory as a person types it."""
    return [_faster(report), _why_not(report), same_accuracy(report), changes(report, run), on_orin(report)]


def _faster(report: ReportFile) -> Answer:
    question, latency = "Is it faster?", report.latency
    if latency is None:
        costs = (
            f"What is counted instead: {size(report.size_bytes)} against {size(report.float_size_bytes)} of the "
            "model in FP32, and"
        )
        counts = (
            f"{costs} {magnitude(report.bops)} bit operations against {magnitude(report.float_bops)}. "
            "Neither is a speed."
        )
        return Answer(
            question, "unknown", (f"Not measured: {bare(report.latency_note) or 'the run has no measurement'}.", counts)
        )
    low, high = latency.interval.low, latency.interval.high
    ratio = f"{number(latency.ratio)} of the float engine's time, 95 % interval {number(low)} to {number(high)}"
    verdict: Verdict = faster(latency.interval)
    first = {
        "yes": f"Yes: it takes {ratio}.",
        "no": f"No, it is slower: it takes {ratio}.",
        "unknown": f"No difference can be shown: it takes {ratio}.",
    }[verdict]
    if report.is_float:
        verdict, first = "no", f"No, it is the float engine. Measured against itself it takes {ratio}."
    measured = (
        f"{number(latency.engine_ms)} ms against {number(latency.float_ms)} ms at batch {latency.batch}; "
        f"{latency.clock}, "
        f"{latency.rounds} rounds, both engines in turn."
    )
    return Answer(
        question, verdict, (first, measured, *_sizes(report), *timing_remarks(latency), *_prediction(latency))
    )


def _sizes(report: ReportFile) -> list[str]:
    """Return which sizes were timed, where the engine takes several."""
    ranges = (
        f"{name} of {shape(row.usual)}, of {shape(row.least)} to {shape(row.most)}"
        for name, row in report.sizes.items()
    )
    return (
        [f"Timed with samples of one size of those that the engine takes: {'; '.join(ranges)}."] if report.sizes else []
    )


def _prediction(latency: LatencyPart) -> list[str]:
    """Return what was predicted without this engine's own measurements; nothing where nothing was."""
    predicted, ends, agrees = latency.predicted_ratio, latency.predicted_interval, predicted_well(latency)
    if predicted is None or ends is None:
        return []
    figures = f"{number(predicted)} ({number(ends.low)} to {number(ends.high)}) before it was built"
    engines = counted(latency.predicted_from, "other engine")
    return [f"Predicted was {figures}, from {engines}, which {'agrees' if agrees else 'does not agree'}."]


def _why_not(report: ReportFile) -> Answer:
    question, latency, differing = "If not, why not?", report.latency, differing_kernels(report)
    sentences = []
    if differing:
        sentences.append(f"In another kernel than planned: {counted(len(differing), 'layer')}, {some(differing)}.")
    sentences += [sentence(text) for text in report.warnings]
    if latency is None:
        return Answer(question, "note", ("There is nothing to explain before it is measured.", *sentences))
    if faster(latency.interval) == "yes" and not report.is_float:
        first = (
            "It is faster."
            if report.met or not report.limits
            else "It is faster, but the budget asks for more: the table below has what it reaches."
        )
        return Answer(question, "note", (first, *sentences))
    if not sentences:
        sentences.append(_measured_reason(report))
    return Answer(question, "note", tuple(sentences))


def _measured_reason(report: ReportFile) -> str:
    """Say what the engines of the loop came to, where nothing else explains the latency."""
    floats = sum(layer.bits >= 16 for layer in report.layers)
    usual = (
        f"{floats} of {counted(len(report.layers), 'layer')} are floating point; small layers often lose more to "
        "conversions between integers and floats than integers save them."
    )
    ratios = [step.measured for step in report.observations if step.measured is not None]
    if not ratios:
        return f"No other engine was measured. {usual}"
    fastest = f"the fastest takes {min(ratios):.3g} of the float engine's time, the slowest {max(ratios):.3g}"
    reason = "No faster one is shown to lose as little as the budget allows." if held_by_loss(report) else usual
    return f"{counted(len(ratios), 'engine')} with other formats were measured: {fastest}. {reason}"


def budget_ratio(report: ReportFile) -> float | None:
    """Return the latency budget as a share of the float engine's time, where there is one and it can be told."""
    latency = report.latency
    for limit in report.limits:
        if limit.cost == "latency":
            if limit.unit != "ms":
                return limit.limit
            return limit.limit / latency.float_ms if latency else None
    return None
