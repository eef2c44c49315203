"""The report of a run for people: one HTML file without script or network, and a few lines for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from calib.files.storage import read_record, write_bytes
from deploy.files.report import LayerRow, ReportedStep, ReportFile
from deploy.report.answer import Answer
from deploy.report.answers import answers, budget_ratio
from deploy.report.plots import bits_plot, latency_plot, pareto_plot
from deploy.report.wording import aligned, amount, counted, fixed, html, magnitude, number, shown, size, span

_LONG_TABLE = 40
"""Rows from which a table scrolls inside the page."""
_CSS = """
:root{color-scheme:light dark;--paper:#fdfdfc;--ink:#1d2327;--quiet:#646d73;--rule:#e1e4e4;--accent:#1f6f8b;--float:#b9c6cb;--warn:#b1510f}
@media (prefers-color-scheme:dark){:root{--paper:#14181a;--ink:#dfe4e6;--quiet:#939da3;--rule:#2b3236;--accent:#63b3ce;--float:#46545b;
--warn:#e89a5b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:2.5rem 1.5rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,"Segoe UI","Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:1.5rem;font-weight:600;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.05rem;font-weight:600;margin:3rem 0 .6rem}
p{margin:.2rem 0;max-width:46rem}
a{color:var(--accent)}
.quiet,figcaption,th,dt{color:var(--quiet)}
.answers{margin:2rem 0 0;border-top:1px solid var(--rule)}
.answer{display:grid;grid-template-columns:13rem 1fr;gap:0 2rem;padding:1rem 0;border-bottom:1px solid var(--rule)}
.answer h2{margin:0;font-size:1rem;line-height:1.55;font-weight:600}
.answer p,.answer li{overflow-wrap:anywhere}
.answer .first{font-weight:600}
.answer ul{margin:.2rem 0;padding-left:1.1rem}
.yes .first{color:var(--accent)}.no .first,.warn-text{color:var(--warn)}
.table{overflow:auto}
.long{max-height:38rem;border-bottom:1px solid var(--rule)}
table{border-collapse:collapse;font-size:.88rem;line-height:1.4}
th{font-weight:500;text-align:left;vertical-align:bottom;position:sticky;top:0;background:var(--paper)}
th,td{padding:.3rem 1.1rem .3rem 0;border-bottom:1px solid var(--rule);white-space:nowrap}
td.text{white-space:normal;overflow-wrap:break-word;max-width:24rem}
.n{text-align:right}
code{font:.86em/1.4 ui-monospace,"DejaVu Sans Mono",monospace}
figure{margin:.6rem 0 0;overflow-x:auto}
figcaption{font-size:.88rem;max-width:46rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.5rem;font-size:.88rem;margin:.4rem 0}
dd{margin:0;overflow-wrap:anywhere}
svg{display:block;max-width:100%;height:auto}
svg text{font-size:11px;fill:var(--quiet)}svg .title{fill:var(--ink)}
.grid{stroke:var(--rule)}.axis,.diagonal{stroke:var(--quiet)}.diagonal{stroke-dasharray:2 4}
.limit{stroke:var(--warn);stroke-dasharray:6 4;stroke-width:1.5}
.bar{fill:var(--accent)}.bar.float{fill:var(--float)}.bar.warn{fill:var(--warn)}
.whisker,.curve{stroke:var(--accent);stroke-width:1.4;fill:none}.whisker.warn{stroke:var(--warn)}
.point{fill:var(--accent)}.point.warn{fill:var(--paper);stroke:var(--warn);stroke-width:1.6}
@media (max-width:42rem){.answer{grid-template-columns:1fr}}
@media print{:root{--paper:#fff;--ink:#000;--quiet:#444;--rule:#ccc;--accent:#1f6f8b;--float:#b9c6cb;--warn:#b1510f}
body{max-width:none;padding:0;font-size:11pt}.long{max-height:none}.table,figure{overflow:visible}th{position:static}
figure,.answer,tr{break-inside:avoid}h2{break-after:avoid}th,td{padding-right:.7rem}}
"""


def write_html(run: Path) -> Path:
    """Read `report.json` of a run and write `report.html` beside it, whole or not at all.

    Raises UserError when `report.json` is missing, damaged or of another version, or when the page cannot be written.
    """
    page = run / "report.html"
    report = read_record(run / ReportFile.NAME, ReportFile, f"make it again with {ReportFile.MADE_BY}")
    write_bytes(page, render_html(report).encode(errors="replace"))
    return page


def summary_lines(report: ReportFile) -> list[str]:
    """Return the five answers as plain text for a terminal, one line each, and a line for every further step to
    take.
    """
    lines = []
    for answer in answers(report):
        lines.append(f"{answer.question} {answer.sentences[0]}")
        if answer.question.startswith("What"):
            lines += [f"  also: {sentence}" for sentence in answer.sentences[1:]]
    return [shown(line) for line in lines]


def render_html(report: ReportFile) -> str:
    """Return the whole page: the answers first, then budget, plan, plots, what was left out, and where it all came
    from.
    """
    name = f"{report.task} on {report.target}"
    met = "Budget met" if report.met else "Budget not met"
    budget = (
        f'Budget <code>{html(report.budget)}</code>. <span class="{"" if report.met else "warn-text"}">{met}.</span>'
    )
    sections = [
        f'<header><h1>{html(name)}</h1><p class="quiet">{budget}</p></header>',
        '<section class="answers" aria-label="Answers">' + "".join(map(_answer, answers(report))) + "</section>",
        _budget(report),
        _plots(report),
        _plan(report),
        _contributions(report),
        _left_out(report),
        _provenance(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html(name)}</title><style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def _answer(answer: Answer) -> str:
    first, *rest = answer.sentences
    if answer.question.startswith("What") and rest:
        body = "<ul>" + "".join(f"<li>{_prose(sentence)}</li>" for sentence in answer.sentences) + "</ul>"
    else:
        body = f'<p class="first">{_prose(first)}</p>' + "".join(f"<p>{_prose(sentence)}</p>" for sentence in rest)
    return f'<article class="answer {answer.verdict}"><h2>{html(answer.question)}</h2><div>{body}</div></article>'


def _budget(report: ReportFile) -> str:
    rows = []
    for limit in report.limits:
        word = {True: "met", False: '<span class="warn-text">not met</span>', None: "not measured"}[limit.met]
        reached = "–" if limit.reached is None else amount(limit.reached, limit.unit)
        rows.append([html(limit.cost), html(amount(limit.limit, limit.unit)), html(reached), word])
    costs = (
        f"The engine has {number(report.avg_bits)} bits a weight on average, {size(report.size_bytes)} against "
        f"{size(report.float_size_bytes)} of the float engine, and {magnitude(report.bops)} bit operations against "
        f"{magnitude(report.float_bops)}."
    )
    table = _table(["cost", "limit", "reached", ""], rows, numeric={1, 2}) if rows else ""
    return f"<section><h2>Budget</h2>{table}<p>{html(costs)}</p></section>"


def _plan(report: ReportFile) -> str:
    layers = report.layers
    total = sum(layer.parameters for layer in layers) or 1
    decimals = aligned(layer.score for layer in layers)
    rows = []
    for layer in layers:
        kernel = "–" if layer.kernel is None else f"<code>{html(layer.kernel)}</code>"
        agrees = {True: "as planned", False: '<span class="warn-text">differs</span>', None: "–"}[layer.kernel_agrees]
        share = f"{100 * layer.parameters / total:.1f} %"
        rows.append(
            [_path(layer.path), html(layer.operator), share, f"<code>{html(layer.format)}</code>",
             fixed(layer.score, decimals), span(layer.interval, decimals), kernel, agrees]
        )  # fmt: skip
    head = ["layer", "operator", "parameters", "format", "score", "95 % interval", "kernel", "and the plan"]
    note = f"Scores of the method {report.scores.method} in {report.scores.value}: the change against the layer in float; higher is better."
    table = _table(head, rows, numeric={2, 4, 5}, text={0, 6}) if rows else "<p>No layer could be quantised.</p>"
    return f'<section><h2>Plan, {counted(len(rows), "layer")}</h2><p class="quiet">{html(note)}</p>{table}</section>'


def _contributions(report: ReportFile) -> str:
    record = report.contributions
    if record is None:
        return ""
    entries = sorted(record.contributions, key=lambda entry: entry.value)
    decimals = aligned(entry.value for entry in entries)
    rows = [
        [
            _path(entry.group),
            f"<code>{html(entry.format)}</code>",
            fixed(entry.value, decimals),
            span(entry.interval, decimals),
        ]
        for entry in entries
    ]
    note = (
        f"Shapley values of this policy in {record.value}, together {number(record.total)} against the float model; "
        f"{record.estimator}, {counted(record.evaluations, 'evaluation')}, stopped by {record.stop_reason}. "
        f"The intervals tell {counted(len(record.apart), 'group')} of layers apart."
    )
    table = _table(["layer", "format", "contribution", "95 % interval"], rows, numeric={2, 3}, text={0})
    return f'<section><h2>What the chosen formats cost</h2><p class="quiet">{html(note)}</p>{table}</section>'


def _plots(report: ReportFile) -> str:
    parts = [_figure("Bits per layer", bits_plot(report.layers), _bits_caption(report.layers))]
    parts.append(_latency(report))
    for cost in sorted({point.cost for point in report.pareto}):
        points = [point for point in report.pareto if point.cost == cost]
        timed = report.latency.ratio if report.latency is not None else None
        chosen = {"avg_bits": report.avg_bits, "latency": timed}.get(cost)
        caption = "Each point is the best plan for its budget by the scores, before it is built; higher is better."
        parts.append(_figure(f"What {cost.replace('_', ' ')} buys", pareto_plot(points, cost, chosen), caption))
    return "".join(parts)


def _latency(report: ReportFile) -> str:
    title, seen = "Predicted against measured latency", report.observations
    if not seen:
        reason = report.latency_note or "no engine was measured"
        return f'<section><h2>{title}</h2><p class="quiet">Nothing to draw: {html(reason)}</p></section>'
    rows = [[str(index), html(each.label), *_observed(each)] for index, each in enumerate(seen, start=1)]
    table = _table(
        ["", "engine", "predicted", "95 % interval", "measured", "95 % interval", ""],
        rows,
        numeric={0, 2, 3, 4, 5},
        text={6},
    )
    measured = sum(each.measured is not None for each in seen)
    caption = f"{counted(measured, 'engine')}, measured in turn with the float engine; bars are 95 % intervals."
    plot = latency_plot(seen, budget_ratio(report))
    return (_figure(title, plot, caption) or f"<section><h2>{title}</h2></section>") + table


def _observed(each: ReportedStep) -> list[str]:
    """Return the cells of an engine: what was predicted and what was measured, or the reason for which the runtime
    refused it.
    """
    predicted = [fixed(each.predicted), span(each.predicted_interval)]
    if each.measured is None:
        return [*predicted, html(f"refused: {each.refused}")]
    return [*predicted, fixed(each.measured), span(each.measured_interval), "within the budget" if each.met else "over"]


def _bits_caption(layers: Sequence[LayerRow]) -> str:
    text = "In the order of the model. Above, the bits of each weight; below, what the layer's format costs."
    if any(layer.bits >= 16 for layer in layers):
        text += " Grey: floating point."
    return text + (
        " Orange: the kernel is not the planned one." if any(layer.kernel_agrees is False for layer in layers) else ""
    )


def _figure(title: str, plot: str, caption: str) -> str:
    return (
        f"<section><h2>{html(title)}</h2><figure>{plot}<figcaption>{html(caption)}</figcaption></figure></section>"
        if plot
        else ""
    )


def _left_out(report: ReportFile) -> str:
    parts = []
    if report.skipped:
        rows = [[_path(row.path), html(row.operator), html(row.reason)] for row in report.skipped]
        parts.append(
            f"<section><h2>Layers left as they "
            f"are</h2>{_table(['layer', 'operator', 'reason'], rows, text={0, 2})}</section>"
        )
    if report.refused:
        rows = [[f"<code>{html(name)}</code>", html(reason)] for name, reason in report.refused.items()]
        parts.append(
            f"<section><h2>Formats refused</h2>{_table(['group: format', 'reason'], rows, text={0, 1})}</section>"
        )
    return "".join(parts)


def _provenance(report: ReportFile) -> str:
    scores, stages = report.scores, report.seconds
    known: dict[str, object] = {
        "engine": report.engine,
        "float engine": report.float_engine or "–",
        "scores": f"{scores.method} ({scores.estimator}), value {scores.value}, {counted(scores.permutations, 'sample')}, "
        f"{counted(scores.evaluations, 'evaluation')}, seed {scores.seed}, stopped by {scores.stop_reason}",
        "timed on": report.machine or "no machine, it was not timed",
        "seconds": ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items()) or "–",
        **{f"version of {name}": text for name, text in report.versions.items()},
        **report.settings,
    }
    items = "".join(f"<dt>{html(name)}</dt><dd>{html(_plain(value))}</dd>" for name, value in known.items())
    return f"<section><h2>Where this came from</h2><dl>{items}</dl></section>"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(part)}" for name, part in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Iterable[int] = (), text: Iterable[int] = ()
) -> str:
    """Lay out cells that are HTML already; numbers to the right, texts may wrap, and many rows scroll.

    The last cell of a row with too few is a text over the columns that are left.
    """
    kinds = {**dict.fromkeys(text, ' class="text"'), **dict.fromkeys(numeric, ' class="n"')}
    top = "".join(f'<th scope="col"{kinds.get(index, "")}>{html(name)}</th>' for index, name in enumerate(head))
    body = "".join(f"<tr>{_cells(row, kinds, len(head))}</tr>\n" for row in rows)
    long = " long" if len(rows) > _LONG_TABLE else ""
    return f'<div class="table{long}"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cells(row: Sequence[str], kinds: Mapping[int, str], columns: int) -> str:
    last, over = len(row) - 1, columns - len(row) + 1
    wide = f' class="text" colspan="{over}"'
    return "".join(
        f"<td{wide if i == last and over > 1 else kinds.get(i, '')}>{cell}</td>" for i, cell in enumerate(row)
    )


def _path(path: str) -> str:
    """Set a module path as code that may break after a dot."""
    return f"<code>{html(path).replace('.', '.<wbr>')}</code>"


def _prose(text: str) -> str:
    """Set what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html(text))
