"""A report.json that is damaged is one message, and the page of before stays; a page is made of any number that a file
may hold. tests/run_files damages every field of every file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calib.errors import UserError
from calib.files.storage import json_text
from deploy.files.report import ReportFile
from deploy.report.page import render_html, write_html
from tests.deploy.report.curve_sample import curve
from tests.deploy.report.report_sample import RUN, VERIFICATION, observation, plain_report, report, stage

Place = tuple[str | int, ...]

FULL = {
    "verification": {**VERIFICATION, "stages": {**VERIFICATION["stages"], "engine": stage(None, not_run="no GPU")}},
    "observations": [observation("a", 0.6, 0.6), observation("b", 0.6, None, refused="no kernel", met=False)],
    "pareto": [{"cost": "avg_bits", "reached": 4.0, "value": -0.1}],
    "curve": curve(),
    "contributions": {
        "schema": 1, "policy": "a", "value": "kl", "total": -0.1, "estimator": "owen", "evaluations": 10, "seed": 0,
        "stop_reason": "precision", "contributions": [{
            "group": "a", "format": "w8a8", "value": -0.1, "standard_error": 0.01, "interval": [-0.12, -0.08],
            "samples": 5,
        }],
        "apart": [["a"]],
    },
}  # fmt: skip
EXTREMES = (-1e300, 1.7e308, 5e-324, 2**53, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: make it with smpq report"),
        (json_text(report())[:500].encode(), "is not valid JSON"),
        (b'{"schema": 13, "task": "\xff"}', "is not valid JSON"),
        (json.dumps({**plain_report(), "schema": 1}).encode(), "has schema 1, this version of smpq reads schema 13"),
        (json.dumps(plain_report(seconds={"a": 1.0, "score": -1})).encode(), 'at `$.seconds["score"]`'),
    ],
)
def test_what_is_wrong_is_one_message_and_the_page_stays(tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "report.html").write_text("old")
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        write_html(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert str(caught.value).startswith(str(tmp_path / "report.json"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def numbers(value: Any, at: Place = ()) -> Iterator[Place]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield from numbers(part, (*at, key))


def test_a_page_is_made_of_any_number_that_is_not_refused() -> None:
    content, made = plain_report(2, **FULL), 0
    for index, (*place, key) in enumerate(numbers(content)):
        changed = holder = msgspec.json.decode(msgspec.json.encode(content))
        for part in place:
            holder = holder[part]
        holder[key] = EXTREMES[index % len(EXTREMES)]
        try:
            made_of = msgspec.convert(changed, ReportFile)
        except msgspec.ValidationError:
            continue
        render_html(made_of, RUN)
        made += 1
    assert made > 30
