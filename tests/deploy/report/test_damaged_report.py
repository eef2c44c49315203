"""A report.json that is damaged in any place is one message, and the page of before stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calib.errors import UserError
from calib.files.storage import json_text, plain
from deploy.report.page import write_html
from tests.deploy.report.report_sample import VERIFICATION, observation, plain_report, report, stage

Place = tuple[str | int, ...]

VERIFICATION_WITH_ALL = {**VERIFICATION, "stages": {**VERIFICATION["stages"], "engine": stage(None, not_run="no GPU")}}
FULL = {
    "verification": VERIFICATION_WITH_ALL,
    "observations": [observation("a", 0.6, 0.6), observation("b", 0.6, None, refused="no kernel", met=False)],
    "stability": {"schema": 1, "policy": "a", "resamples": 40, "undecided": ["a"], "frequencies": {"a": {"w8a8": 0.5, "w4a8": 0.5}}},
    "pareto": [{"cost": "avg_bits", "reached": 4.0, "value": -0.1}],
    "skipped": [{"path": "a", "operator": "conv2d", "reason": "its weight is no parameter"}],
    "refused": {"a: w4": "no kernel"},
    "warnings": ["a warning"],
    "contributions": {
        "schema": 1, "policy": "a", "value": "kl", "total": -0.1, "estimator": "owen", "evaluations": 10, "seed": 0, "stop_reason": "precision",
        "contributions": [{"group": "a", "format": "w8a8", "value": -0.1, "standard_error": 0.01, "interval": [-0.12, -0.08], "samples": 5}],
        "apart": [["a"]],
    },
    "finetuning": {
        "schema": 1, "policy": "a", "sha256": "0" * 64, "kept": "end", "before": {"value": -0.1, "metric": 0.8},
        "after": {"value": -0.05, "metric": 0.9}, "samples": "512", "seconds": 1.0, "settings": {"epochs": 4}, "history": [],
    },
}  # fmt: skip
MAY_BE_ABSENT = {"refused", "not_run", "problem", "schema"}
"""What a file may leave out, besides the members of mappings."""
MAPPINGS = {"policy", "accuracy", "refused", "settings", "versions", "seconds", "stages", "frequencies", "a"}
MISSING = object()


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield from places(part, (*at, key))


def changed(value: Any, place: Place, new: Any) -> Any:
    """Return a copy with another value at a place, or without it."""
    if not place:
        return new
    key, *rest = place
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if not rest and new is MISSING:
        del copy[key]
    else:
        copy[key] = changed(copy[key], tuple(rest), new)
    return copy


def holder(content: Any, place: Place) -> Any:
    for key in place[:-1]:
        content = content[key]
    return content


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "report.html").write_text("old")
    return tmp_path / "report.html"


def refusal(page: Path, content: str | bytes | None) -> str:
    file = page.with_name("report.json")
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        write_html(page.parent)
    assert page.read_text() == "old"
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: make it with smpq report"),
        (json_text(report())[:500], "is not valid JSON"),
        ("", "is not valid JSON"),
        (b'{"schema": 5, "task": "\xff"}', "is not valid JSON"),
        ("[1]", "is damaged: expected `object`, got `array`: make it again with smpq report"),
        (
            json.dumps({**plain_report(), "schema": 1}),
            "has schema 1, this version of smpq reads schema 5: make it again",
        ),
        (json.dumps({**plain_report(), "metrics": 1}), "unknown field `metrics`"),
        (json.dumps(plain_report(limits=7)), "expected `array`, got `int` - at `$.limits`"),
        (json.dumps(plain_report(seconds={"a": 1.0, "score": -1})), 'at `$.seconds["score"]`'),
        ('{"schema": 5, "task": ' + "[" * 100_000, "is not valid JSON"),
    ],
)
def test_what_is_wrong_is_one_message_and_the_page_stays(page: Path, content: str | bytes | None, message: str) -> None:
    assert message in refusal(page, content)


def whole() -> dict[str, Any]:
    content: dict[str, Any] = plain(report(2, **FULL))
    return content


def test_a_part_that_is_missing_is_named(page: Path) -> None:
    content, tried = whole(), 0
    for place in places(content):
        name = place[-1] if place else 0
        if not isinstance(name, str) or name in MAY_BE_ABSENT or (len(place) > 1 and place[-2] in MAPPINGS):
            continue
        assert f"`{name}`" in refusal(page, json.dumps(changed(content, place, MISSING)))
        tried += 1
    assert tried > 100


@pytest.mark.parametrize("new", [[[[]]], {"x": {"y": {"z": 0}}}, [[[[[[]]]]]] * 3], ids=["list", "mapping", "nested"])
def test_a_part_of_another_type_is_located(page: Path, new: Any) -> None:
    content, tried = whole(), 0
    for place in places(content):
        if place:
            refusal(page, json.dumps(changed(content, place, new)))
            tried += 1
    assert tried > 150


def test_a_number_out_of_all_range_is_refused_or_shown(page: Path) -> None:
    """A page is made, or there is one message: no number that a file can hold makes it fail otherwise."""
    content, made = whole(), 0
    extremes: tuple[Callable[[float], float], ...] = (
        lambda old: -old - 1,
        lambda _: 1.7e308,
        lambda _: 5e-324,
        lambda _: 2**53,
        lambda _: 0,
    )
    for place in places(content):
        old = holder(content, place)[place[-1]] if place else None
        if isinstance(old, bool) or not isinstance(old, int | float):
            continue
        for extreme in extremes:
            page.with_name("report.json").write_text(json.dumps(changed(content, place, extreme(old))))
            try:
                write_html(page.parent)
            except UserError:
                continue
            made += 1
    assert made > 100
