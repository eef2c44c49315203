"""SliM-LLM as a method: one average for all layers, whatever the length of their blocks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from calib.formats.format import FP32, Format
from calib.formats.mixed_widths import MixedWidths
from deploy.run.settings import Settings
from deploy.stages.choosing import score_for, search
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.methods import METHODS
from smpq.methods.same_average import bits_taken_away, same_average
from smpq.problem.budget import Budget
from smpq.problem.costs import CostModel
from smpq.solve.allocate import Ceiling, Impossible
from tests.linear_task import formats
from tests.smpq.problems import space_of


@pytest.fixture
def workspace(tmp_path):
    settings = Settings(
        "tests.linear_task:task", target="simulate", formats=formats("m2", "m2.5", "m3"), rounding="slim",
        widths="slim", samples=16, evaluations=9,
    )  # fmt: skip
    with open_run(tmp_path / "run", Progress(), settings) as opened:
        yield opened


@pytest.mark.parametrize(("budget", "average"), [("avg_bits=2.9", 2.5), ("avg_bits=3", 3.0), ("avg_bits=2", 2.0)])
def test_all_layers_get_the_largest_average_that_the_budget_allows(workspace, budget, average):
    limit = Budget.from_text(budget)
    policy = search(workspace, limit, score_for(workspace, limit, "slim-llm")).policy
    assert {chosen.weight_bits for chosen in policy.formats.values()} == {average}
    assert {chosen.weight_block for chosen in policy.formats.values()} == {8, 12}
    weights = workspace.fake_quantizer.plan(policy.by_unit(workspace.space.groups)).weights
    for weight in weights.values():
        assert 0 <= average * len(weight.type.widths) - sum(weight.type.widths) < 1


def test_a_budget_below_every_average_is_impossible(workspace):
    limit = Budget.from_text("avg_bits=2")
    scores = score_for(workspace, limit, "slim-llm")
    with pytest.raises(Impossible, match="no policy with one average for all layers meets the budget"):
        METHODS["slim-llm"].policy(workspace.space, scores, [Ceiling(workspace.costs["avg_bits"], 1.9)])


@pytest.mark.parametrize(
    ("name", "settings", "note"),
    [
        ("slim-llm", {"rounding": "slim", "widths": "slim"}, None),
        ("slim-llm", {"rounding": "slim"}, "that takes --widths slim"),
        ("slim-llm", {}, "that takes --rounding slim --widths slim"),
        ("mg-ptq", {}, "that takes --widths graph"),
        ("cmpq", {}, "nothing to decide"),
    ],
)
def test_a_note_says_where_the_settings_are_not_those_of_the_method(name, settings, note, tmp_path):
    asked = Settings("tests.linear_task:task", target="simulate", formats=formats("m2"), samples=16, **settings)
    with open_run(tmp_path / "run", Progress(), asked) as opened:
        notes = score_for(opened, Budget.from_text("avg_bits=3"), name).notes
    assert [note in text for text in notes] == ([True] if note else [])


def test_it_says_what_it_decides():
    assert METHODS["slim-llm"].decides == "groups of columns"
    assert Format.from_text("wm2a16b8").weight == Format.from_text("wm2a16b12").weight


def test_longer_blocks_where_short_ones_are_too_large():
    narrow, short, long = (Format.from_text(text) for text in ("wm2a16b8", "wm2.5a16b8", "wm2.5a16b16"))
    space = space_of(2, (narrow, short, long, FP32))
    bits = {narrow: 4.0, short: 5.0, long: 4.5, FP32: 32.0}
    size = CostModel("size", 0.0, {group.name: bits for group in space.groups}, 64.0)
    scores = bits_taken_away(SimpleNamespace(space=space, seed=0), MixedWidths).linear
    for limit, wanted in ((10.0, short), (9.5, long), (8.5, narrow)):
        assert set(same_average(space, scores, [Ceiling(size, limit)]).formats.values()) == {wanted}
