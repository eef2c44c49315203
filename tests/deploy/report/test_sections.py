"""What the page says of scores with pairs of layers."""

from __future__ import annotations

import pytest

from deploy.report.sections import sections
from tests.deploy.report.report_sample import plain_report, report

STABILITY = {"schema": 2, "policy": "conv1=w8a8", "resamples": 0, "undecided": [], "frequencies": {}}


def plan_note(**other):
    (note,) = [section.note for section in sections(report(**other)) if section.title.startswith("Plan")]
    return note


def allocated(value, bound, where="everywhere"):
    return {**STABILITY, "allocation": {"value": value, "bound": bound, "where": where}}


def test_a_plan_that_is_proven_and_one_that_is_not():
    assert plan_note(stability=allocated(-0.25, -0.25)).endswith("pairs of layers included, is worth −0.25: proven.")
    assert plan_note(stability=allocated(-0.25, -0.125)).endswith(
        "is worth −0.25, of those found. The solver reached its limit: another may be better by up to 0.125."
    )
    assert "pairs" not in plan_note()
    far = plan_note(stability=allocated(-0.25, -0.25, "beyond"))
    assert "for these scores, which were measured far from it: no plan where they were is within the budget" in far


def test_a_bound_below_the_value_is_refused():
    with pytest.raises(Exception, match="a bound is not below a value that was found"):
        plan_note(stability=allocated(-0.25, -0.5))


def test_notes_of_the_scores_are_sentences():
    scores = {
        "method": "m", "value": "kl", "estimator": "e", "evaluations": 1, "permutations": 0, "seed": 0,
        "stop_reason": "every move", "notes": ["six pairs were measured", "the others count as 0"],
    }  # fmt: skip
    assert plan_note(scores=scores).endswith("Six pairs were measured. The others count as 0.")


def test_what_calibration_noted_stands_with_the_plan():
    assert plan_note(notes=["kept in float32: norm"]).endswith("Kept in float32: norm.")


def test_the_budget_has_the_intervals_of_what_was_measured():
    size = {"cost": "size", "limit": 500_000, "reached": 301_000, "unit": "bytes", "met": True}
    loss = {"cost": "drop", "limit": 0.5, "reached": 0.31, "interval": [-0.07, 0.55], "unit": "points", "met": False}
    content = report(limits=[plain_report()["limits"][0], size, loss])
    (table,) = [each for each in sections(content) if each.title == "Budget"]
    assert [row[:4] for row in table.rows] == [
        ["latency", "0.65x", "0.642x", "0.639x to 0.647x"],
        ["size", "500 kB", "301 kB", "–"],
        ["drop", "0.5 points", "0.31 points", "−0.07 points to 0.55 points"],
    ]
