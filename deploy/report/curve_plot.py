"""The curve as inline SVG: cost against accuracy. A point tells its plan when it is pointed at or focused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from markupsafe import Markup

from deploy.files.curve import CurveFile, JudgedPoint, PointKind, PointRow
from deploy.report.axes import Box, Scale, ends, fit, frame_of, free_place
from deploy.report.svg import LETTER, element, label, line, picture
from deploy.report.wording import change, counted, measure, number
from smpq.files import SHARES

KINDS: Mapping[PointKind, str] = {
    "found": "found by the search",
    "uniform": "one format everywhere",
    "float": "float engine",
    "quantize_static": "plain quantize_static",
}
_CORNERS: Mapping[PointKind, Sequence[tuple[int, int]]] = {
    "uniform": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
    "float": ((0, -6), (6, 0), (0, 6), (-6, 0)),
    "quantize_static": ((0, -6), (6, 5), (-6, 5)),
}
"""Of the marks that are no circles, in px around the point."""
_LEFT, _TOP, _ACROSS, _HIGH = 72.0, 40.0, 560.0, 300.0
_WIDTH, _HEIGHT = 648.0, 420.0
_RADIUS = 4.5
_NAMED = 3
Drawn = tuple[PointRow, JudgedPoint]


def curve_plot(curve: CurveFile) -> Markup:
    """Draw every point with both intervals, dominated ones pale, and a line through the others; the plan of a point
    stands below while it is pointed at.
    """
    points = [(point, point.judged) for point in curve.points if point.judged is not None]
    if not points:
        return Markup()
    percent = 100.0 if curve.metric in SHARES else 1.0
    base = next((judged.accuracy for point, judged in points if point.kind == "float"), 0.0)

    def ends_of(judged: JudgedPoint) -> tuple[float, float]:
        # the difference to the float model is known better than the accuracy itself
        return percent * (base + judged.change_interval.low), percent * (base + judged.change_interval.high)

    across = [end for point, _ in points for end in (point.ratio, *ends(point.ratio_interval))]
    up = [end for _, judged in points for end in (percent * judged.accuracy, *ends_of(judged))]
    x_scale, y_scale = fit(across, _LEFT, _LEFT + _ACROSS, least=0.04), fit(up, _TOP + _HIGH, _TOP)
    unit = ", %" if percent > 1 else ""
    cost = "in the float engine's time" if curve.cost == "latency" else "in the fp32 model's size"
    parts = frame_of(x_scale, y_scale, cost, f"{curve.metric}{unit}")
    best = [
        (x_scale(point.ratio), y_scale(percent * judged.accuracy)) for point, judged in points if not point.dominated
    ]
    parts.append(element("polyline", class_="curve", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in best)))
    places = [(x_scale(point.ratio), y_scale(percent * judged.accuracy)) for point, judged in points]
    boxes = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    for (point, judged), place in zip(points, places, strict=True):
        low, high = ends_of(judged)
        parts.append(_engine(curve, point, judged, place, x_scale, (y_scale(low), y_scale(high)), boxes))
    parts += _legend({point.kind for point in curve.points})
    name = f"{'Latency' if curve.cost == 'latency' else 'Size'} against {curve.metric}"
    told = "Point at an engine, or move to it with the tab key, to read its plan here."
    return picture(_WIDTH, _HEIGHT, name, parts, role="group") + element("p", told, class_="told quiet", role="status")


def _engine(
    curve: CurveFile,
    point: PointRow,
    judged: JudgedPoint,
    place: tuple[float, float],
    x_scale: Scale,
    reach: tuple[float, float],
    boxes: list[Box],
) -> Markup:
    x, y = place
    low, high = ends(point.ratio_interval) or (point.ratio, point.ratio)
    parts = [
        line(x_scale(low), y, x_scale(high), y, "whisker"),
        line(x, reach[0], x, reach[1], "whisker"),
        _mark(point.kind, x, y),
    ]
    room = free_place(x, y, len(point.name) * LETTER, boxes, (_LEFT, _TOP, _LEFT + _ACROSS, _TOP + _HIGH))
    if room is not None:
        parts.append(label(*room, point.name))
    text = f"{described(curve, point, judged)} {full_plan(point)}"
    kind = "engine pale" if point.dominated else "engine"
    attributes = {"class": kind, "tabindex": "0", "role": "img", "data-plan": text}
    return element("g", element("title", text), *parts, **attributes)


def described(curve: CurveFile, point: PointRow, judged: JudgedPoint) -> str:
    """Return what a point is, costs and reaches, in a sentence."""
    metric, whole = curve.metric, "the float engine's time" if curve.cost == "latency" else "the fp32 model's size"
    low, high = ends(point.ratio_interval) or (None, None)
    interval = f" ({number(low)} to {number(high)})" if low is not None else ""
    took = f", {number(point.ms)} ms" if point.ms is not None else ""
    span = judged.change_interval
    lost = f"{change(judged.change, metric)} ({change(span.low, metric)} to {change(span.high, metric)}) against float"
    return (
        f"{point.name}, {KINDS[point.kind]}: {number(point.ratio)}{interval} of {whole}{took}; "
        f"{metric} {measure(judged.accuracy, judged.interval, metric)}, {lost}."
    )


def full_plan(point: PointRow) -> str:
    """Return the format of every layer; neighbours of one format are named by the first and the last."""
    if point.policy is None:
        return "No plan of this run: 8-bit integers wherever onnxruntime knows how."
    runs = []
    for chosen, entries in groupby(point.policy.policy.items(), key=lambda entry: entry[1]):
        paths = [path for path, _ in entries]
        span = paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]} ({counted(len(paths), 'layer')})"
        runs.append(f"{span} {chosen}")
    kept = f"; in float: {', '.join(point.policy.float_joins)}" if point.policy.float_joins else ""
    return f"Plan: {', '.join(runs)}{kept}."


def short_plan(point: PointRow) -> str:
    """Return how many layers have each format, the commonest first; where these are few they are named."""
    layers: dict[str, list[str]] = {}
    for path, chosen in (point.policy.policy if point.policy is not None else {}).items():
        layers.setdefault(chosen, []).append(path)
    ranked = sorted(layers.items(), key=lambda entry: -len(entry[1]))
    return ", ".join(
        f"{chosen} on {', '.join(paths)}" if index and len(paths) <= _NAMED else f"{chosen} on {len(paths)}"
        for index, (chosen, paths) in enumerate(ranked)
    )


def _mark(kind: PointKind, x: float, y: float) -> Markup:
    corners = _CORNERS.get(kind)
    if corners is None:
        return element("circle", class_="point", cx=x, cy=y, r=_RADIUS)
    return element("polygon", class_="point", points=" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners))


def _legend(kinds: set[PointKind]) -> list[Markup]:
    parts, x = [], _LEFT + 6
    for kind, text in KINDS.items():
        if kind in kinds:
            parts += [_mark(kind, x, 16.0), label(x + 10, 20.0, text)]
            x += 16 + len(text) * LETTER + 14
    return parts
