"""The sections of a report below its answers: which there are, and the words and numbers in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deploy.files.report import ReportedStep, ReportFile
from deploy.report.answer import sentence
from deploy.report.answers import budget_ratio
from deploy.report.axes import ends
from deploy.report.curve_section import curve_section
from deploy.report.plots import bits_plot, latency_plot, pareto_plot
from deploy.report.section import Section, Warned
from deploy.report.steps import differing_kernels, trained_together
from deploy.report.wording import aligned, amount, counted, fixed, magnitude, number, size, span
from smpq.files import PLACES, ContributionsFile


def sections(report: ReportFile) -> Iterator[Section]:
    """Yield the sections in the order of the page."""
    yield _budget(report)
    if report.layers:
        yield Section("Bits per layer", figure=bits_plot(report.layers), caption=_bits_caption(report))
    if report.curve is not None:
        yield curve_section(report.curve)
    yield _latency(report)
    yield from _curves(report)
    yield _plan(report)
    if report.contributions is not None:
        yield _contributions(report.contributions)
    if report.skipped:
        rows = [[row.path, row.operator, row.reason] for row in report.skipped]
        columns = [("layer", "path"), ("operator", "word"), ("reason", "text")]
        yield Section("Layers left as they are", columns=columns, rows=rows)
    if report.refused:
        columns = [("group: format", "code"), ("reason", "text")]
        yield Section("Formats refused", columns=columns, rows=list(report.refused.items()))
    yield _provenance(report)


def _budget(report: ReportFile) -> Section:
    rows = []
    for limit in report.limits:
        word = "met" if limit.met else "not measured" if limit.met is None else Warned("not met")
        reached = "–" if limit.reached is None else amount(limit.reached, limit.unit)
        interval = " to ".join(amount(end, limit.unit) for end in ends(limit.interval)) or "–"
        rows.append([limit.cost, amount(limit.limit, limit.unit), reached, interval, word])
    costs = (
        f"The engine has {number(report.avg_bits)} bits a weight on average, {size(report.size_bytes)} against "
        f"{size(report.float_size_bytes)} of the model in FP32, and {magnitude(report.bops)} bit operations against "
        f"{magnitude(report.float_bops)}."
    )
    columns = [
        ("cost", "word"), ("limit", "number"), ("reached", "number"), ("95 % interval", "number"), ("", "word"),
    ]  # fmt: skip
    return Section("Budget", columns=columns, rows=rows, text=costs)


def _plan(report: ReportFile) -> Section:
    layers = report.layers
    total = sum(layer.parameters for layer in layers) or 1
    decimals = aligned(layer.score for layer in layers)
    rows = []
    for layer in layers:
        agrees = "as planned" if layer.kernel_agrees else "–" if layer.kernel_agrees is None else Warned("differs")
        share = f"{100 * layer.parameters / total:.1f} %"
        score, interval = fixed(layer.score, decimals), span(layer.interval, decimals)
        rows.append([layer.path, layer.operator, share, layer.format, score, interval, layer.kernel or "–", agrees])
    columns = [
        ("layer", "path"), ("operator", "word"), ("parameters", "number"), ("format", "code"), ("score", "number"),
        ("95 % interval", "number"), ("kernel", "code"), ("and the plan", "word"),
    ]  # fmt: skip
    note = " ".join([_origin(report), *map(sentence, (*report.scores.notes, *report.notes)), *_proof(report)])
    text = "" if rows else "No layer could be quantised."
    return Section(f"Plan, {counted(len(rows), 'layer')}", note=note, columns=columns, rows=rows, text=text)


def _origin(report: ReportFile) -> str:
    scores = report.scores
    if all(layer.score is None for layer in report.layers):
        return (
            f"Formats and weights were trained together, by the method {scores.method}."
            if trained_together(report)
            else ""
        )
    return (
        f"Scores of the method {scores.method} in {scores.value}: the change against the layer in float; "
        "higher is better."
    )


def _proof(report: ReportFile) -> list[str]:
    """Say whether the plan of scores with pairs is proven the best within the budget."""
    row = report.stability.allocation if report.stability is not None else None
    if row is None:
        return []
    found = f"The best plan for these scores{PLACES[row.where]}, pairs of layers included, is worth {number(row.value)}"
    if row.bound == row.value:
        return [f"{found}: proven."]
    gap = number(row.bound - row.value)
    return [f"{found}, of those found. The solver reached its limit: another may be better by up to {gap}."]


def _contributions(record: ContributionsFile) -> Section:
    entries = sorted(record.contributions, key=lambda entry: entry.value)
    decimals = aligned(entry.value for entry in entries)
    rows = [
        [entry.group, entry.format, fixed(entry.value, decimals), span(entry.interval, decimals)] for entry in entries
    ]
    note = (
        f"Shapley values of this policy in {record.value}, together {number(record.total)} against the float model; "
        f"{record.estimator}, {counted(record.evaluations, 'evaluation')}, stopped by {record.stop_reason}. "
        f"The intervals tell {counted(len(record.apart), 'group')} of layers apart."
    )
    columns = [("layer", "path"), ("format", "code"), ("contribution", "number"), ("95 % interval", "number")]
    return Section("What the chosen formats cost", note=note, columns=columns, rows=rows)


def _curves(report: ReportFile) -> Iterator[Section]:
    chosen = {"avg_bits": report.avg_bits, "latency": report.latency.ratio if report.latency is not None else None}
    caption = "Each point is the best plan for its budget by the scores, before it is built; higher is better."
    for cost in sorted({point.cost for point in report.pareto}):
        points = [point for point in report.pareto if point.cost == cost]
        figure = pareto_plot(points, cost, chosen.get(cost))
        yield Section(f"What {cost.replace('_', ' ')} buys", figure=figure, caption=caption)


def _latency(report: ReportFile) -> Section:
    title, seen = "Predicted against measured latency", report.observations
    if not seen:
        reason = report.latency_note or "no search has measured engines for this budget"
        return Section(title, note=f"Nothing to draw: {reason}")
    columns = [
        ("", "number"), ("engine", "word"), ("predicted", "number"), ("95 % interval", "number"),
        ("measured", "number"), ("95 % interval", "number"), ("", "text"),
    ]  # fmt: skip
    rows = [[str(index), each.label, *_observed(each)] for index, each in enumerate(seen, start=1)]
    measured = sum(each.measured is not None for each in seen)
    caption = f"{counted(measured, 'engine')}, measured in turn with the float engine; bars are 95 % intervals."
    figure = latency_plot(seen, budget_ratio(report))
    return Section(title, figure=figure, caption=caption, columns=columns, rows=rows)


def _observed(each: ReportedStep) -> list[str]:
    """Return what was predicted of an engine, and what was measured or why the runtime refused it."""
    predicted = [fixed(each.predicted), span(each.predicted_interval)]
    if each.measured is None:
        return [*predicted, f"refused: {each.refused}"]
    return [*predicted, fixed(each.measured), span(each.measured_interval), "within the budget" if each.met else "over"]


def _bits_caption(report: ReportFile) -> str:
    text = "In the order of the model. Above, the bits of each weight; below, what the layer's format costs."
    grey = " Grey: floating point." if any(layer.bits >= 16 for layer in report.layers) else ""
    orange = " Orange: the kernel is not the planned one." if differing_kernels(report) else ""
    return text + grey + orange


def _provenance(report: ReportFile) -> Section:
    scores = report.scores
    known: dict[str, object] = {
        "engine": report.engine,
        "float engine": report.float_engine,
        "scores": f"{scores.method} ({scores.estimator}), value {scores.value}, "
        f"{counted(scores.permutations, 'sample')}, {counted(scores.evaluations, 'evaluation')}, seed {scores.seed}, "
        f"stopped by {scores.stop_reason}",
        "timed on": report.machine or "no machine, it was not timed",
        "seconds": ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items()) or None,
        **{f"version of {name}": text for name, text in report.versions.items()},
        **report.settings,
    }
    return Section("Where this came from", items={name: _plain(value) for name, value in known.items()})


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(part)}" for name, part in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
