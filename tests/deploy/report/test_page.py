"""The page and the lines for the terminal: answers first, every layer, every number, nothing that runs."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calib.files.storage import json_text
from deploy.files.report import ReportFile
from deploy.report.page import render_html, summary_lines, write_html
from tests.deploy.report.curve_sample import curve
from tests.deploy.report.report_sample import (
    LATENCY,
    RUN,
    layer,
    long,
    observation,
    report,
    unmeasured,
)

QUESTIONS = [
    "Is it faster?",
    "If not, why not?",
    "Is the accuracy on the engine the same as in PyTorch?",
    "What do I change?",
    "Will it run on my Orin?",
]
VOID = {"meta", "wbr"}


class Page(HTMLParser):
    """Checks that tags match, and keeps tags, headings, table rows and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self.open):
            return
        self.text += data
        if "h2" in self.open:
            self.headings[-1] += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_answers_come_first_in_the_order_they_are_asked() -> None:
    page = Page(render_html(report(), RUN))
    assert page.headings[:5] == QUESTIONS
    assert page.headings[5:] == [
        "Budget",
        "Bits per layer",
        "Predicted against measured latency",
        "Plan, 20 layers",
        "Where this came from",
    ]
    assert [line.split("?")[0] + "?" for line in summary_lines(report(), RUN)] == QUESTIONS


@pytest.mark.parametrize("content", [unmeasured(), long(), report(0, policy={}), report(curve=curve())])
def test_the_page_needs_nothing_but_itself(content: ReportFile) -> None:
    html = render_html(content, RUN)
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "img", "iframe", "object", "form"})
    assert [given for tag, given in page.tags if tag == "script"] == [{}], "its own, which it holds"
    assert not any(name in ("src", "href") or name.startswith("on") for _, given in page.tags for name in given)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html
    assert "prefers-color-scheme:dark" in html
    assert "@media print" in html


def test_it_can_be_read_aloud() -> None:
    page = Page(render_html(long(), RUN))
    assert ("html", {"lang": "en"}) in page.tags
    pictures = [given for tag, given in page.tags if tag == "svg"]
    assert len(pictures) == 3
    assert all(given["role"] == "img" and given["aria-label"] for given in pictures)
    assert all(given["scope"] == "col" for tag, given in page.tags if tag == "th")


def test_every_layer_has_a_row_with_its_numbers() -> None:
    layers = [
        layer("stem.conv", bits=16),
        layer("head", 7, kernel_agrees=False, kernel=None),
        layer("tail", kernel_agrees=None),
    ]
    page = Page(render_html(report(layers=layers), RUN))
    assert [row for row in page.rows if len(row) == 8] == [
        ["layer", "operator", "parameters", "format", "score", "95 % interval", "kernel", "and the plan"],
        ["stem.conv", "conv2d", "25.0 %", "fp16", "–", "–", "Conv", "as planned"],
        ["head", "conv2d", "50.0 %", "w8a8", "−0.00600", "−0.00700 to −0.00500", "–", "differs"],
        ["tail", "conv2d", "25.0 %", "w8a8", "−0.00200", "−0.00300 to −0.00100", "QLinearConv", "–"],
    ]
    assert "no layer could be quantised" in Page(render_html(report(0, policy={}), RUN)).text.lower()


def test_long_tables_scroll_and_short_ones_do_not() -> None:
    assert '<div class="table long">' in render_html(long(), RUN)
    assert '<div class="table long">' not in render_html(report(), RUN)


def test_code_and_paths() -> None:
    """What stands between backticks is code, and a single backtick itself; a path may break after a dot."""
    html = render_html(report(layers=[layer("a.b")], warnings=["try `smpq build` or `", "plain"]), RUN)
    assert "<p>Try <code>smpq build</code> or `.</p><p>Plain.</p>" in html
    assert "<code>a.<wbr>b</code>" in html


ACTING = "\x1b\x00\x07\x9b\u202e\u2066\udc80"
HOSTILE = "<script>alert('x')</script>\"&" + ACTING


def test_hostile_names_are_text() -> None:
    content = report(
        task=HOSTILE, budget=HOSTILE, layers=[layer(HOSTILE, kernel=HOSTILE, operator=HOSTILE, kernel_agrees=False)],
        warnings=[HOSTILE], curve=curve(metric=HOSTILE, machine=HOSTILE, stop_reason=HOSTILE, path=HOSTILE),
        engine=HOSTILE, skipped=[{"path": HOSTILE, "operator": HOSTILE, "reason": HOSTILE}], refused={HOSTILE: HOSTILE},
        machine=HOSTILE, settings={HOSTILE: [HOSTILE]}, versions={HOSTILE: HOSTILE},
        latency={**LATENCY, "interval": [1.1, 1.2], "clock": HOSTILE},
        observations=[observation(HOSTILE, 0.5, 0.6), observation("refused", 0.5, None, refused=HOSTILE, met=False)],
    )  # fmt: skip
    html = render_html(content, RUN)
    assert html.count("<script") == 1, "the page's own"
    page = Page(html)
    assert page.text.count("<script>alert('x')</script>") >= 12
    assert not set(ACTING) & set(html + "".join(summary_lines(content, RUN)))
    assert "\ufffd" in summary_lines(content, RUN)[1]


def test_a_refused_engine_has_its_reason_in_place_of_figures() -> None:
    refused = observation("turn 3", 0.6, None, refused="no kernel for <w3a8>", met=False)
    page = Page(render_html(report(observations=[observation("turn 1", 0.63, 0.662, met=False), refused]), RUN))
    assert ["2", "turn 3", "0.600", "0.582 to 0.618", "refused: no kernel for <w3a8>"] in page.rows
    assert ["1", "turn 1", "0.630", "0.612 to 0.648", "0.662", "0.658 to 0.666", "over"] in page.rows
    assert "1 engine, measured in turn" in page.text
    (wide,) = [given for tag, given in page.tags if "colspan" in given]
    assert wide == {"class": "text", "colspan": "3"}
    alone = Page(render_html(report(observations=[refused]), RUN))
    assert "Predicted against measured latency" in alone.headings
    assert "refused: no kernel for <w3a8>" in alone.text


def test_what_was_left_out_and_where_it_came_from() -> None:
    text = Page(render_html(long(), RUN)).text
    for expected in ("no quantised kernel for this operator", "head: w4a16b128", "not a multiple of 128", "torch",
                     "2.13.0", "seed 0", "shapley (permutation)", "40 samples", "score 81.2",
                     "a processor, Linux x86_64", "w8a8, fp32", "What avg bits buys"):  # fmt: skip
        assert expected in text
    untimed = Page(render_html(unmeasured(), RUN)).text
    assert "timed onno machine, it was not timed" in untimed
    assert "Nothing to draw: timing a plan needs" in untimed
    quiet = Page(render_html(report(), RUN))
    assert "Layers left as they are" not in quiet.headings
    assert "Formats refused" not in quiet.headings


def test_the_file_is_written_whole_beside_its_data(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json_text(long()))
    (tmp_path / "report.html").write_text("old")
    page = write_html(tmp_path)
    assert page == tmp_path / "report.html"
    assert page.read_text(encoding="utf-8") == render_html(long(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_no_model_library_is_loaded() -> None:
    code = (
        "import sys, deploy.report.page; "
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3]).returncode == 0
