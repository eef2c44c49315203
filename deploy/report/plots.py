"""Plots of a report as inline SVG: plain text, drawn with the page's own colours, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from deploy.files.report import CurvePoint, LayerRow, ReportedStep
from deploy.report.axes import Scale, ends, fit, frame_of, free_place, horizontal, legend_of
from deploy.report.svg import LETTER, element, hinted, label, line, picture
from deploy.report.wording import shown, signed

_LABEL_LETTERS = 24
_LABEL_PITCH = 14.0
"""Least distance in px of slanted labels that do not touch."""
_SLANT = math.radians(60)
_FLOAT_BITS = 16


def bits_plot(layers: Sequence[LayerRow]) -> Markup:
    """Draw the weight bits of each layer as bars and, under them on the same axis, its score with the 95 % interval."""
    if not layers:
        return Markup()
    left, top, height, gap, right = 84.0, 22.0, 140.0, 34.0, 16.0
    step = min(64.0, max(860.0 / len(layers), 3.0))
    width = max(left + step * len(layers) + right, 420.0)
    lower_top = top + height + gap
    every = math.ceil(_LABEL_PITCH / step)
    names = short_names([shown(layer.path) for layer in layers])
    depth = max(map(len, names)) * LETTER * math.sin(_SLANT) + 18
    parts = _bit_bars(layers, step, left, top, top + height, width - right)
    parts += _score_points(layers, step, left, lower_top, lower_top + height, width - right)
    for index, name in enumerate(names):
        if index % every == 0:
            x, y = left + step * (index + 0.5) + 4, lower_top + height + 14
            parts.append(label(x, y, name, anchor="end", turned=-60))
    name = "Weight bits of each layer, and its score with the 95 % interval"
    return picture(width, lower_top + height + depth, name, parts)


def _bit_bars(
    layers: Sequence[LayerRow], step: float, left: float, top: float, bottom: float, right: float
) -> list[Markup]:
    bits = [layer.bits for layer in layers]
    wide = max(bits) > 8
    # Next to 16 or 32 bits the steps between 2, 3 and 4 would vanish: then each doubling is one step.
    scale = Scale(0, math.log2(max(bits)) if wide else 8, bottom, top + 14)
    parts = [label(left, top - 6, "weight bits, each doubling one step" if wide else "weight bits", "title")]
    for tick in [value for value in (2, 4, 8, 16, 32) if value <= max(bits)] if wide else (2, 4, 6, 8):
        parts += horizontal(scale(math.log2(tick) if wide else tick), left, right, str(tick))
    bar = min(30.0, step * 0.72)
    for index, (layer, count) in enumerate(zip(layers, bits, strict=True)):
        x, y = left + step * (index + 0.5), scale(math.log2(count) if wide else count)
        kind = "bar warn" if layer.kernel_agrees is False else "bar float" if count >= _FLOAT_BITS else "bar"
        hint = f"{layer.path}: {layer.format}"
        parts.append(hinted("rect", hint, class_=kind, x=x - bar / 2, y=y, width=bar, height=max(bottom - y, 0.5)))
        if step >= 16:
            parts.append(label(x, y - 4, f"{count:g}", anchor="middle"))
    return parts


def _score_points(
    layers: Sequence[LayerRow], step: float, left: float, top: float, bottom: float, right: float
) -> list[Markup]:
    parts = [label(left, top - 10, "score and 95 % interval (below zero: costs accuracy)", "title")]
    known = [
        (index, layer.path, layer.score, layer.interval)
        for index, layer in enumerate(layers)
        if layer.score is not None and layer.interval is not None
    ]
    if not known:
        return [*parts, label(left + 8, (top + bottom) / 2, "no scores")]
    scale = fit([0.0, *(end for _, _, score, interval in known for end in (score, *ends(interval)))], bottom, top)
    for tick in scale.ticks(4):
        parts += horizontal(scale(tick), left, right, signed(f"{tick:g}"), "axis" if tick == 0 else "grid")
    for index, path, score, interval in known:
        x = left + step * (index + 0.5)
        low, high = ends(interval)
        parts.append(line(x, scale(low), x, scale(high), "whisker"))
        hint = f"{path}: {score:.3g}, {low:.3g} to {high:.3g}"
        radius = min(3.0, max(1.2, step * 0.3))
        parts.append(hinted("circle", hint, class_="point", cx=x, cy=scale(score), r=radius))
    return parts


def latency_plot(observations: Sequence[ReportedStep], budget_ratio: float | None) -> Markup:
    """Draw predicted against measured latency with both intervals, the diagonal and the budget; points carry their
    number.
    """
    points = []
    for number, seen in enumerate(observations, start=1):
        if seen.measured is not None and seen.measured_interval is not None:
            across = (seen.predicted, *ends(seen.predicted_interval))
            points.append((number, seen, across, (seen.measured, *ends(seen.measured_interval))))
    if not points:
        return Markup()
    left, top, side, width, height = 72.0, 40.0, 392.0, 484.0, 490.0
    bounds = [value for _, _, across, up in points for value in (*across, *up)]
    bounds += [] if budget_ratio is None else [budget_ratio]
    x_scale, y_scale = fit(bounds, left, left + side, least=0.04), fit(bounds, top + side, top, least=0.04)
    parts = frame_of(x_scale, y_scale, "predicted, in float engine's time", "measured")
    parts.append(line(left, top + side, left + side, top, "diagonal"))
    legend = [("diagonal", "predicted = measured")]
    if budget_ratio is not None:
        parts.append(line(left, y_scale(budget_ratio), left + side, y_scale(budget_ratio), "limit"))
        legend.append(("limit", f"budget {budget_ratio:.3g}"))
    boxes = []
    for _, _, across, up in points:
        x, y = x_scale(across[0]), y_scale(up[0])
        boxes.append((x - 5, y - 5, x + 5, y + 5))
        boxes.append((x_scale(across[1]), y - 1, x_scale(across[2]), y + 1))
        boxes.append((x - 1, y_scale(up[2]), x + 1, y_scale(up[1])))
    frame = (left, top, left + side, top + side)
    for number, seen, across, up in points:
        x, y = x_scale(across[0]), y_scale(up[0])
        kind = "" if seen.met else " warn"
        parts.append(line(x_scale(across[1]), y, x_scale(across[2]), y, "whisker" + kind))
        parts.append(line(x, y_scale(up[1]), x, y_scale(up[2]), "whisker" + kind))
        hint = f"{number}. {seen.label}: predicted {across[0]:.3f}, measured {up[0]:.3f}"
        parts.append(hinted("circle", hint, class_=f"point{kind}", cx=x, cy=y, r=4))
        place = free_place(x, y, len(str(number)) * LETTER, boxes, frame)
        if place is not None:
            parts.append(label(*place, str(number)))
    return picture(width, height, "Predicted against measured latency", [*parts, *legend_of(legend, left, 16)])


def pareto_plot(points: Sequence[CurvePoint], cost: str, chosen: float | None) -> Markup:
    """Draw the best value that each amount of one cost buys; `chosen` is what the engine of this report costs."""
    pairs = sorted((point.reached, point.value) for point in points)
    if not pairs:
        return Markup()
    left, top, across, high, width, height = 72.0, 40.0, 392.0, 210.0, 484.0, 308.0
    x_scale = fit([reached for reached, _ in pairs] + ([chosen] if chosen is not None else []), left, left + across)
    y_scale = fit([value for _, value in pairs], top + high, top)
    parts = frame_of(x_scale, y_scale, cost.replace("_", " "), "value of the plan")
    corners = " ".join(f"{x_scale(reached):.1f},{y_scale(value):.1f}" for reached, value in pairs)
    parts.append(element("polyline", class_="curve", points=corners))
    for reached, value in pairs:
        hint = f"{reached:.4g}: {value:.4g}"
        parts.append(hinted("circle", hint, class_="point", cx=x_scale(reached), cy=y_scale(value), r=3))
    legend = []
    if chosen is not None:
        parts.append(line(x_scale(chosen), top, x_scale(chosen), top + high, "limit"))
        legend.append(("limit", f"this engine, {chosen:.3g}"))
    return picture(width, height, f"Value against {cost}", [*parts, *legend_of(legend, left, 16)])


def short_names(paths: Sequence[str]) -> list[str]:
    """Leave out the modules that all paths begin with, then the middle of what is still too long: both ends tell layers
    apart.
    """
    split = [path.split(".") for path in paths]
    common = 0
    while len(paths) > 1 and all(len(parts) > common + 1 and parts[common] == split[0][common] for parts in split):
        common += 1
    names = [".".join(parts[common:]) for parts in split]
    head = _LABEL_LETTERS // 2 - 1
    return [
        name if len(name) <= _LABEL_LETTERS else f"{name[:head]}…{name[head + 1 - _LABEL_LETTERS :]}" for name in names
    ]
