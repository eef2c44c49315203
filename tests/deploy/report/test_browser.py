"""The page in a real browser, without a window."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from deploy.report.page import render_html
from tests.deploy.report.curve_sample import curve
from tests.deploy.report.report_sample import RUN, report
from tests.deploy.report.test_page import Page

USED = """<script>
document.querySelector(".engine").focus();
const heads = Array.from(document.querySelectorAll("th button"));
heads.find((button) => button.textContent === "against float").click();
const root = document.documentElement;
root.dataset.overflows = root.scrollWidth > root.clientWidth;
</script>"""
"""Focuses the first engine, sorts the curve's table, and looks whether the page is wider than the window."""


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    """The page as the browser has it after it was used, and what the browser logged."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium or Chrome on the path")
    place = tmp_path_factory.mktemp("browser")
    file = place / "report.html"
    file.write_text(render_html(report(curve=curve()), RUN) + USED, encoding="utf-8")
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--window-size=375,800",
        f"--user-data-dir={place / 'profile'}", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    found = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(place)}
    )
    return Page(re.sub(r"^.*?(?=<html)", "", found.stdout, count=1, flags=re.DOTALL)), found.stderr


def test_nothing_is_wrong_by_the_console(browsed: tuple[Page, str]) -> None:
    assert [line for line in browsed[1].splitlines() if "CONSOLE" in line] == []


def test_the_figures_of_the_report_are_on_it(browsed: tuple[Page, str]) -> None:
    for point in curve()["points"]:
        (row,) = [row for row in browsed[0].rows if row[:1] == [point["name"]]]
        assert row[2] == f"{point['ratio']:.3f}"
        assert row[5] == f"{100 * point['judged']['accuracy']:.2f} %"


def test_a_focused_engine_tells_its_plan_and_tables_sort(browsed: tuple[Page, str]) -> None:
    page = browsed[0]
    assert [row[0] for row in page.rows if re.fullmatch(r"P\d", row[0])] == ["P3", "P1", "P4", "P2", "P5"]
    assert ("aria-sort", "ascending") in [pair for tag, given in page.tags if tag == "th" for pair in given.items()]
    assert "P1, one format everywhere: 0.58 (0.576 to 0.584) of the float engine's time" in page.text
    assert page.text.count("P1, one format everywhere") == 2, "its title, and below the plot"


def test_it_fits_a_phone(browsed: tuple[Page, str]) -> None:
    (html,) = [given for tag, given in browsed[0].tags if tag == "html"]
    assert html["data-overflows"] == "false", "tables and plots scroll by themselves"
    assert ("meta", {"name": "viewport", "content": "width=device-width,initial-scale=1"}) in browsed[0].tags
