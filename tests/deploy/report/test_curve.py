"""The curve on the page: what is drawn, pale and marked, and what a point says of its plan."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from copy import deepcopy

import msgspec
import pytest

from deploy.files.curve import CurveFile
from deploy.report.curve_plot import curve_plot, full_plan, short_plan
from deploy.report.page import render_html
from tests.deploy.report.curve_sample import curve, sized_curve
from tests.deploy.report.report_sample import RUN, report
from tests.deploy.report.test_page import Page


def read(content: dict) -> CurveFile:
    return msgspec.convert(content, CurveFile)


def engines(content: dict) -> list[ET.Element]:
    return [
        each
        for each in ET.fromstring(f"<figure>{curve_plot(read(content))}</figure>").iter("g")
        if "engine" in each.attrib["class"]
    ]


def test_every_engine_is_drawn_with_both_intervals_and_its_kind():
    found = engines(curve())
    assert [each.attrib["class"] for each in found] == ["engine", "engine", "engine pale", "engine pale", "engine"]
    marks = [next(part for part in each if part.attrib.get("class") == "point") for each in found]
    assert [mark.tag for mark in marks] == ["polygon", "circle", "polygon", "circle", "polygon"]
    assert [len(mark.attrib.get("points", "").split()) for mark in marks] == [4, 0, 3, 0, 4]
    assert all(len(each.findall("line")) == 2 for each in found)
    across = [float(each.find("line").attrib["x1"]) for each in found]
    assert across == sorted(across)


def test_a_point_tells_its_plan_when_pointed_at_or_focused():
    second = engines(curve())[1]
    assert second.attrib["tabindex"] == "0"
    text = second.attrib["data-plan"]
    assert second.find("title").text == text
    assert text.startswith("P2, found by the search: 0.642 (0.638 to 0.646) of the float engine's time, 1.88 ms; ")
    assert "top-1 89.85 % (89.25 to 90.45), −0.15 (−0.45 to +0.15) against float" in text
    assert text.endswith("Plan: stem fp32, layer1.conv1 to head (2 layers) w8a8.")


def test_the_line_leads_through_what_nothing_dominates():
    figure = ET.fromstring(f"<figure>{curve_plot(read(curve()))}</figure>")
    (line,) = figure.iter("polyline")
    assert len(line.attrib["points"].split()) == 3


def test_plans_in_words():
    points = read(curve()).points
    assert short_plan(points[1]) == "w8a8 on 2, fp32 on stem"
    assert short_plan(points[2]) == ""
    assert full_plan(points[2]).startswith("No plan of this run")


def test_the_page_has_the_figures_of_the_report():
    page = Page(render_html(report(curve=curve()), RUN))
    assert "Latency against accuracy" in page.headings
    (row,) = [row for row in page.rows if row[:1] == ["P2"]]
    assert row == ["P2", "found", "0.642", "0.638 to 0.646", "1.88", "89.85 %", "−0.15", "−0.45 to +0.15", "193 kB",
                   "w8a8 on 2, fp32 on stem"]  # fmt: skip
    assert (
        "Timed on a processor, Linux x86_64; top-1 on 10,000 evaluation samples, through the engine itself."
        in page.text
    )


def test_what_cannot_be_timed_is_said_to_be_simulated():
    page = Page(render_html(report(curve=sized_curve()), RUN))
    assert "Size against accuracy" in page.headings
    assert "Not timed: simulate has no engine to time. Size stands for latency; " in page.text
    assert "simulated, through the fake-quantised model" in page.text
    (row,) = [row for row in page.rows if row[:1] == ["P2"]]
    assert len(row) == 8
    assert (
        engines(sized_curve())[0]
        .attrib["data-plan"]
        .startswith("P1, one format everywhere: 0.58 of the fp32 model's size; ")
    )


def test_without_a_curve_there_is_no_section():
    page = Page(render_html(report(), RUN))
    assert not [heading for heading in page.headings if "against accuracy" in heading]


def wrong(content: dict, number: int, **change: object) -> dict:
    changed = deepcopy(content)
    changed["points"][number] |= change
    return changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wrong(curve(), 3, dominated=False), "whether P4 is dominated does not follow from the figures"),
        (wrong(curve(), 1, dominated=True), "whether P2 is dominated does not follow"),
        (wrong(curve(), 1, ms=2.5), "the ratio of P2 does not follow from its cost"),
        (wrong(curve(), 1, name="P1"), "the point P1 is there twice"),
        (wrong(curve(), 2, value=0.1), "every engine but that of quantize_static has a policy"),
        (wrong(curve(), 4, kind="found"), "one point is the float model"),
        (wrong(curve(), 0, ratio=0.7, ratio_interval=[0.69, 0.71], ms=2.0538), "the cheapest point comes first"),
        ({**curve(), "machine": None}, "a latency was measured on a machine"),
    ],
)
def test_figures_that_contradict_each_other_are_refused(content, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        read(content)
