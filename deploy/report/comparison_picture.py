"""The picture of a comparison: plans, accuracy, latency, cost and correlations; a file of its own, without script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from markupsafe import Markup

from deploy.files.comparison import ComparedRun, Comparison
from deploy.report.axes import Scale, ends, fit
from deploy.report.comparison_lines import correlation_cells, method_of, metrics_of, names_of
from deploy.report.plots import short_names
from deploy.report.svg import LETTER, element, hinted, label, line, picture
from deploy.report.wording import change, counted, fixed, measure, shown, signed, size, span
from smpq.files import Interval

_WIDTH, _LEFT, _ROW = 1000.0, 232.0, 26.0
_GAP = 46.0
_LETTERS, _LONGEST_METRIC = 34, 14
_WIDEST_CELL, _NARROWEST_TEXT = 34.0, 15.0
_SHADES = ((2, "b2"), (3, "b3"), (4, "b4"), (8, "b8"), (15, "b15"))
"""Up to so many bits a cell is of that class; more are floats."""
_CSS = Markup("""
text{font:11px system-ui,"Segoe UI","Liberation Sans",sans-serif;fill:#646d73}.title{fill:#1d2327;font-size:13px}\
.name{fill:#1d2327}
.paper{fill:#fdfdfc}.grid{stroke:#e4e7e6;stroke-width:1}.whisker{stroke:#1f6f8b;stroke-width:2}\
.point,.bar{fill:#1f6f8b}.axis{stroke:#9aa4a9}
.b2{fill:#b1510f}.b3{fill:#d98f3a}.b4{fill:#f0d08b}.b8{fill:#8fbfce}.b15{fill:#4f93a8}.b16{fill:#c9d1d4}\
.in{fill:#1d2327}.b2+text{fill:#fff}
.near{fill:#1f6f8b}.far{fill:#b1510f}.none{fill:none;stroke:#c9d1d4}
@media (prefers-color-scheme:dark){text{fill:#939da3}.title,.name{fill:#dfe4e6}.paper{fill:#14181a}\
.grid{stroke:#2a3134}.whisker{stroke:#63b3ce}
.point,.bar,.near{fill:#63b3ce}.axis{stroke:#59656a}.b16{fill:#46545b}.far{fill:#e89a5b}}
""")


def comparison_svg(found: Comparison) -> str:
    """Draw the plans layer by layer, under them what each run reaches and costs, and how alike the scores order."""
    parts, y = _plans(found, 56.0)
    more, y = _figures(found, y + _GAP)
    parts += more
    more, y = _correlations(found, y + _GAP)
    title = f"{counted(len(found.runs), 'run')} of one network"
    head = [
        element("style", _CSS),
        element("rect", class_="paper", width=_WIDTH, height=y + 16),
        label(16, 24, title, "title"),
    ]
    whole = [*head, *parts, *more]
    return f"{picture(_WIDTH, y + 16, title, whole, xmlns='http://www.w3.org/2000/svg')}\n"


def _row_names(found: Comparison, top: float, *, methods: bool) -> list[Markup]:
    """Write which run a row is of, in front of it."""
    parts = []
    for index, (name, run) in enumerate(zip(names_of(found), found.runs, strict=True)):
        text = f"{index + 1} {method_of(run)}" if methods else name
        parts.append(label(_LEFT - 10, top + _ROW * (index + 0.5) + 4, _short(text), "name", "end"))
    return parts


def _short(text: str, most: int = _LETTERS) -> str:
    text = shown(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _plans(found: Comparison, top: float) -> tuple[list[Markup], float]:
    """Draw a row of cells for each run, one for each layer, and return where they end."""
    step = min(_WIDEST_CELL, (_WIDTH - _LEFT - 16) / len(found.layers))
    parts = [label(_LEFT, top - 10, "weight bits of each layer", "title"), *_shades(top - 20)]
    for row, run in enumerate(found.runs):
        for column, (text, bits) in enumerate(zip(run.formats, run.bits, strict=True)):
            x, y = _LEFT + step * column, top + _ROW * row
            hint = f"{found.layers[column].path}: {text}, {method_of(run)}"
            kind = next((name for most, name in _SHADES if bits <= most), "b16")
            parts.append(hinted("rect", hint, class_=kind, x=x, y=y, width=max(step - 1, 0.5), height=_ROW - 2))
            if step >= _NARROWEST_TEXT:
                parts.append(label(x + step / 2, y + _ROW / 2 + 3, f"{bits:g}", "in", "middle"))
    bottom = top + _ROW * len(found.runs)
    names = short_names([shown(layer.path) for layer in found.layers])
    every = math.ceil(14.0 / step)
    for column, name in enumerate(names):
        if column % every == 0:
            parts.append(label(_LEFT + step * (column + 0.5) + 4, bottom + 12, name, anchor="end", turned=-60))
    depth = max(map(len, names)) * LETTER * math.sin(math.radians(60)) + 14
    return [*parts, *_row_names(found, top, methods=False)], bottom + depth


def _shades(y: float) -> list[Markup]:
    parts, x = [], _WIDTH - 330.0
    for kind, text in (("b2", "2"), ("b3", "3"), ("b4", "4"), ("b8", "5 to 8"), ("b15", "9 to 15"), ("b16", "float")):
        parts += [label(x + 14, y + 9, text), element("rect", class_=kind, x=x, y=y, width=10, height=10)]
        x += 14 + LETTER * len(text) + 14
    return parts


def _figures(found: Comparison, top: float) -> tuple[list[Markup], float]:
    """Draw accuracy and latency as points with intervals, size and seconds as bars, each in a panel of its own."""
    panels: list[tuple[str, Callable[[ComparedRun], tuple[float, Interval | None, str] | None]]] = [
        *((f"{_short(metric, _LONGEST_METRIC)}, 95 %", partial(_accuracy, metric)) for metric in metrics_of(found)),
        ("of the float engine's time, 95 %", _latency),
        ("size", lambda run: (run.size_bytes, None, size(run.size_bytes))),
        ("seconds", lambda run: None if run.seconds is None else (run.seconds, None, f"{run.seconds:.0f} s")),
    ]
    width = (_WIDTH - _LEFT - 16) / len(panels)
    parts = _row_names(found, top, methods=True)
    for index, (title, of) in enumerate(panels):
        left = _LEFT + width * index
        parts.append(label(left, top - 10, title, "title"))
        parts += _panel([of(run) for run in found.runs], left, width - 14, top)
    return parts, top + _ROW * len(found.runs)


def _accuracy(metric: str, run: ComparedRun) -> tuple[float, Interval | None, str] | None:
    found = run.accuracy
    if found is None or found.metric != metric:
        return None
    moved = f", change {change(found.change, found.metric, unit=True)}"
    return found.mean, found.interval, measure(found.mean, found.interval, found.metric) + moved


def _latency(run: ComparedRun) -> tuple[float, Interval | None, str] | None:
    found = run.latency
    return None if found is None else (found.ratio, found.interval, f"{fixed(found.ratio)} ({span(found.interval)})")


def _panel(
    figures: Sequence[tuple[float, Interval | None, str] | None], left: float, width: float, top: float
) -> list[Markup]:
    known = [figure for figure in figures if figure is not None]
    parts = [line(left, top, left, top + _ROW * len(figures) - 2, "axis")]
    if not known:
        return [*parts, label(left + 8, top + _ROW / 2 + 4, "none")]
    bars = all(interval is None for _, interval, _ in known)
    right = left + width - 46
    values = [end for value, interval, _ in known for end in (value, *ends(interval))]
    scale = Scale(0.0, max(*values, 1e-12), left, right) if bars else fit(values, left + 6, right)
    for row, figure in enumerate(figures):
        y = top + _ROW * (row + 0.5) - 1
        if figure is None:
            parts.append(label(left + 8, y + 4, "–"))
            continue
        value, interval, text = figure
        if interval is None:
            length = max(scale(value) - left, 0.5)
            parts.append(hinted("rect", text, class_="bar", x=left, y=y - 6, width=length, height=12))
            parts.append(label(left + length + 5, y + 4, text))
            continue
        parts.append(line(scale(interval.low), y, scale(interval.high), y, "whisker"))
        parts.append(hinted("circle", text, class_="point", cx=scale(value), cy=y, r=4))
        parts.append(label(scale(interval.high) + 6, y + 4, signed(text.partition(" (")[0])))
    return parts


def _correlations(found: Comparison, top: float) -> tuple[list[Markup], float]:
    """Draw the rank correlations as a square of cells, the stronger the more opaque."""
    cells, width = correlation_cells(found), 46.0
    title = "rank correlation of the scores: above the diagonal over all moves, below it over the layers in one format"
    parts = [label(_LEFT, top - 10, title, "title"), *_row_names(found, top + 18, methods=True)]
    for row, texts in enumerate(cells):
        parts.append(label(_LEFT + width * (row + 0.5), top + 10, str(row + 1), anchor="middle"))
        for column, text in enumerate(texts):
            x, y = _LEFT + width * column, top + 18 + _ROW * row
            value = _value(text)
            kind = "none" if value is None else "near" if value >= 0 else "far"
            strength = "" if value is None else f"{0.12 + 0.6 * abs(value):.2f}"
            parts.append(element("rect", class_=kind, x=x, y=y, width=width - 2, height=_ROW - 2, opacity=strength))
            parts.append(label(x + width / 2 - 1, y + _ROW / 2 + 3, text, "name", "middle"))
    return parts, top + 18 + _ROW * len(cells)


def _value(text: str) -> float | None:
    try:
        return float(text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None
