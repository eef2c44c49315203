"""Plots: everything drawn, nothing outside the picture, no label on another."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from msgspec.structs import replace

from deploy.files.report import LayerRow
from deploy.report.plots import bits_plot, latency_plot, pareto_plot, short_names
from tests.deploy.report.report_sample import layer, layer_rows, long, observation, observation_rows

LETTER = 5.5  # px of a digit or letter at 11 px


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def of_class(svg: str, tag: str, kind: str) -> list[ET.Element]:
    return [element for element in parse(svg).iter(tag) if kind in element.attrib["class"].split()]


def texts(svg: str, kind: str = "label") -> list[str]:
    return [element.text or "" for element in of_class(svg, "text", kind)]


def corners(element: ET.Element) -> list[tuple[float, float]]:
    get = {
        name: float(value)
        for name, value in element.attrib.items()
        if name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height")
    }
    match element.tag:
        case "line":
            return [(get["x1"], get["y1"]), (get["x2"], get["y2"])]
        case "rect":
            return [(get["x"], get["y"]), (get["x"] + get["width"], get["y"] + get["height"])]
        case "circle":
            return [(get["cx"] - get["r"], get["cy"] - get["r"]), (get["cx"] + get["r"], get["cy"] + get["r"])]
        case "polyline":
            return [(float(x), float(y)) for x, y in (pair.split(",") for pair in element.attrib["points"].split())]
        case "text":
            return text_corners(element)
    return []


def text_corners(element: ET.Element) -> list[tuple[float, float]]:
    x, y, width = float(element.attrib["x"]), float(element.attrib["y"]), LETTER * len(element.text or "")
    start = x - {"start": 0.0, "middle": width / 2, "end": width}[element.attrib["text-anchor"]]
    turn = element.attrib.get("transform", "rotate(0").removeprefix("rotate(").split()[0]
    angle = math.radians(float(turn))
    return [(x + (end - x) * math.cos(angle), y + (end - x) * math.sin(angle)) for end in (start, start + width)]


def assert_inside(svg: str) -> None:
    root = parse(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for x, y in corners(element):
            assert 0 <= x <= width, (element.tag, element.attrib, element.text)
            assert 0 <= y <= height, (element.tag, element.attrib, element.text)


MANY = long().layers


@pytest.mark.parametrize(
    "layers",
    [layer_rows(layer("fc")), layer_rows(*(layer(f"l{i}", i) for i in range(20))), MANY, MANY * 4],
    ids=["1", "20", "140", "560"],
)
def test_every_layer_has_a_bar_and_a_point_inside_the_picture(layers: tuple[LayerRow, ...]) -> None:
    svg = bits_plot(layers)
    assert_inside(svg)
    assert len(of_class(svg, "rect", "bar")) == len(layers)
    scored = [one for one in layers if one.score is not None]
    assert len(of_class(svg, "circle", "point")) == len(of_class(svg, "line", "whisker")) == len(scored)


def test_bars_and_points_of_a_layer_share_the_axis() -> None:
    svg = bits_plot(layer_rows(*(layer(f"l{i}", i) for i in range(7))))
    for bar, point in zip(of_class(svg, "rect", "bar"), of_class(svg, "circle", "point"), strict=True):
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) / 2 == pytest.approx(
            float(point.attrib["cx"]), abs=0.15
        )


def test_integer_bars_stand_in_proportion_and_doublings_are_equal_steps_beside_floats() -> None:
    for widths, expected in (((2, 4, 8), (1, 2, 4)), ((2, 4, 8, 16, 32), (1, 2, 3, 4, 5))):
        svg = bits_plot(layer_rows(*(layer(str(bits), bits=bits) for bits in widths)))
        heights = [float(bar.attrib["height"]) for bar in of_class(svg, "rect", "bar")]
        assert heights == pytest.approx([heights[0] * factor for factor in expected], abs=0.3)
        assert len(of_class(svg, "rect", "float")) == sum(bits >= 16 for bits in widths)


def test_a_kernel_that_differs_is_marked() -> None:
    svg = bits_plot(layer_rows(layer("a"), layer("b", kernel_agrees=False), layer("c", kernel_agrees=None)))
    (marked,) = of_class(svg, "rect", "warn")
    assert [title.text for title in marked] == ["b: w8a8"]


def test_slanted_labels_keep_their_distance() -> None:
    names = [element for element in parse(bits_plot(MANY)).iter("text") if "transform" in element.attrib]
    places = [float(element.attrib["x"]) for element in names]
    assert 20 < len(places) < len(MANY)
    assert min(after - before for before, after in pairwise(places)) >= 13


def test_scores_that_are_missing_are_left_out() -> None:
    svg = bits_plot(layer_rows(layer("a", score=None, interval=None), layer("b")))
    assert_inside(svg)
    assert len(of_class(svg, "circle", "point")) == 1
    assert "no scores" in texts(bits_plot(layer_rows(layer("a", bits=32))))
    assert bits_plot([]) == ""


EXTREMES = (0.0, 5e-324, 1.7e308)


@pytest.mark.parametrize("high", EXTREMES)
@pytest.mark.parametrize("low", [-value for value in EXTREMES])
def test_numbers_of_any_size_stay_in_the_picture(low: float, high: float) -> None:
    seen = {**observation("a", high, 0.6), "predicted_interval": [low, high], "measured_interval": [low, high]}
    points = long().pareto
    ends = (replace(points[0], reached=low, value=high), replace(points[1], reached=high, value=low))
    for svg in (
        bits_plot(layer_rows(layer("a", bits=2**53, format="fp32"), layer("b", score=high, interval=[low, high]))),
        latency_plot(observation_rows(seen), high),
        pareto_plot(ends, "latency", low),
    ):
        assert_inside(svg)
        assert "nan" not in svg


def test_points_lie_above_the_diagonal_when_slower_than_predicted_and_over_the_budget_line_when_over() -> None:
    svg = latency_plot(observation_rows(observation("fast", 0.6, 0.55), observation("slow", 0.6, 0.7, met=False)), 0.65)
    assert_inside(svg)
    (diagonal,) = [line for line in of_class(svg, "line", "diagonal") if line.attrib["y1"] != line.attrib["y2"]]
    (x1, y1), (x2, y2) = corners(diagonal)
    fast, slow = ((float(point.attrib["cx"]), float(point.attrib["cy"])) for point in of_class(svg, "circle", "point"))
    for (x, y), below in ((fast, True), (slow, False)):
        assert (y > y1 + (x - x1) / (x2 - x1) * (y2 - y1)) == below
    budget = max(of_class(svg, "line", "limit"), key=lambda line: float(line.attrib["x2"]) - float(line.attrib["x1"]))
    assert slow[1] < float(budget.attrib["y1"]) < fast[1]
    assert "budget 0.65" in texts(svg)
    assert len(of_class(svg, "circle", "warn")) == 1


def test_both_intervals_are_drawn_and_what_was_refused_is_not() -> None:
    measured, refused = observation("a", 0.6, 0.62), observation("b", 0.6, None, refused="no kernel", met=False)
    svg = latency_plot(observation_rows(refused, measured), None)
    both = [element.attrib for element in of_class(svg, "line", "whisker")]
    assert len(both) == 2
    assert sum(line["y1"] == line["y2"] and line["x1"] != line["x2"] for line in both) == 1
    assert sum(line["x1"] == line["x2"] and line["y1"] != line["y2"] for line in both) == 1
    assert not of_class(svg, "line", "limit")
    assert "2" in texts(svg), "the point keeps the number of its row in the table"
    assert latency_plot([], 0.65) == latency_plot(observation_rows(refused), 0.65) == ""


def test_numbers_of_crowded_points_do_not_cover_each_other() -> None:
    svg = latency_plot(long().observations, 0.65)
    assert_inside(svg)
    assert len(of_class(svg, "circle", "point")) == 14
    labels = of_class(svg, "text", "label")
    numbers = [
        element for element in labels if (element.text or "").isdigit() and element.attrib["text-anchor"] == "start"
    ]
    assert len(numbers) >= 7
    boxes = [
        (x, y - 9, x + LETTER * len(element.text or ""), y - 1)
        for element in numbers
        for x, y in [text_corners(element)[0]]
    ]
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_pareto_runs_from_cheap_to_dear_and_marks_the_engine() -> None:
    points = long().pareto
    svg = pareto_plot(points[::-1], "avg_bits", 8.31)
    assert_inside(svg)
    (curve,) = of_class(svg, "polyline", "curve")
    places = corners(curve)
    assert len(places) == len(points)
    assert places == sorted(places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert "this engine, 8.31" in texts(svg)
    assert "avg bits" in texts(svg, "title")
    assert_inside(pareto_plot(points[:1], "latency", None))
    assert pareto_plot([], "latency", 0.5) == ""


def test_names_are_escaped_and_the_picture_stays_well_formed() -> None:
    hostile = '"><script>alert(1)</script>&'
    for svg in (
        bits_plot(layer_rows(layer(hostile))),
        latency_plot(observation_rows(observation(hostile, 0.5, 0.5)), 0.6),
    ):
        assert "<script" not in svg
        assert any(hostile in (title.text or "") for title in parse(svg).iter("title"))
    acting = bits_plot(layer_rows(layer("a\x1b[2J\x00\u202eb")))
    assert_inside(acting)
    assert not {"\x1b", "\x00", "\u202e"} & set(acting)


def test_short_names_tell_layers_apart() -> None:
    names = short_names([one.path for one in MANY])
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 24
    assert names[0] == "0.attention.projection_0"
    assert short_names(["model.fc"]) == ["model.fc"]
    assert short_names(["block", "block.conv"]) == ["block", "block.conv"]
    assert len(short_names(["x" * 200])[0]) == 24
