"""Runs side by side: on one screen, and as a picture."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from msgspec.structs import replace

from deploy.report.comparison_lines import comparison_lines, differing
from deploy.report.comparison_picture import comparison_svg
from smpq.files import Interval
from tests.deploy.report.comparison_sample import comparison

SVG = "{http://www.w3.org/2000/svg}"


def test_five_runs_fit_on_one_screen():
    lines = comparison_lines(comparison())
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 130
    assert lines[0] == "5 runs of one network, 20 layers, ort-cpu, avg_bits=3", "what is the same is said once"


def test_what_the_table_says():
    text = "\n".join(comparison_lines(comparison()))
    rows = dict(re.findall(r"^(\d) \S+ +(.*)$", text.split("Rank")[0], re.MULTILINE))
    assert rows["1"].split() == [
        "shapley", "2.90", "100", "kB", "88.00", "%", "(87.40", "to", "88.60)", "0.600", "(0.580", "to", "0.620)",
        "312", "400",
    ]  # fmt: skip
    assert "ohq data-free" in rows["4"]
    assert "not verified" in rows["5"]
    square = text.split("mean.\n")[1].split("\n\n")[0].splitlines()
    assert square[1].split()[2:] == ["0.85", "0.75", "0.65", "–"]
    assert square[2].split()[2:] == ["\N{MINUS SIGN}0.20", "0.75", "0.65", "–"]


def test_runs_of_two_metrics_have_a_column_and_a_panel_of_each():
    found = comparison(3, 6)
    own = replace(found.runs[1].accuracy, metric="score", mean=12.5, interval=Interval(12.0, 13.0))
    mixed = replace(found, runs=(found.runs[0], replace(found.runs[1], accuracy=own), found.runs[2]))
    head, *rows = comparison_lines(mixed)[2:6]
    at = {name: head.index(f"{name} (95 %)") for name in ("top-1", "score")}
    told = [[row[at[name] :].split("  ")[0] for name in ("top-1", "score")] for row in rows]
    assert told == [["88.00 % (87.40 to 88.60)", "–"], ["–", "12.5 (12 to 13)"], ["86.00 % (85.40 to 86.60)", "–"]]
    titles = [text.text for text in ET.fromstring(comparison_svg(mixed)).iter(f"{SVG}text")]
    assert {"top-1, 95 %", "score, 95 %"} <= set(titles)


def test_the_layers_that_differ_most_come_first():
    found = comparison(3, 6)
    same, twice, thrice = ("w8a8",) * 3, ("w8a8", "w4a8", "w8a8"), ("w8a8", "w4a8", "w2a8")
    columns = [same, twice, thrice, same, twice, same]
    runs = [replace(run, formats=row) for run, row in zip(found.runs, zip(*columns, strict=True), strict=True)]
    changed = replace(found, runs=tuple(runs))
    assert differing(changed) == [2, 4, 1], "of two the one with more weights"
    equal = replace(found, runs=tuple(replace(run, formats=("w8a8",) * 6) for run in found.runs))
    assert comparison_lines(equal)[-1] == "All runs have the same plan."


def test_a_large_network_shows_the_layers_that_differ():
    lines = comparison_lines(comparison(layers=300))
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 130
    assert any("layers of 300 that differ" in line for line in lines)


def test_the_picture_is_whole_for_any_size():
    for runs, layers in ((2, 1), (5, 20), (5, 300)):
        root = ET.fromstring(comparison_svg(comparison(runs, layers)))
        cells = [each for each in root.iter(f"{SVG}rect") if re.fullmatch(r"b\d+", each.get("class", ""))]
        assert len(cells) == runs * layers + 6, "one for each layer of each run, and the legend"
        width, height = float(root.get("width")), float(root.get("height"))
        for each in root.iter(f"{SVG}rect"):
            assert -0.5 <= float(each.get("x", 0)) <= width
            assert float(each.get("y", 0)) + float(each.get("height")) <= height + 0.5
        titles = [each.text for each in root.iter(f"{SVG}title")]
        assert any("88.00 % (87.40 to 88.60), change" in title for title in titles)


def test_names_that_act_on_a_terminal_or_a_page_do_not():
    found = comparison(2, 3)
    evil = replace(found.runs[0], path="runs/<b>\x1b[31m")
    changed = replace(found, runs=(evil, found.runs[1]))
    assert "\x1b" not in "".join(comparison_lines(changed)) + comparison_svg(changed)
    assert "<b>" not in comparison_svg(changed)
