"""SliM-LLM as a method: one average for all layers, whatever the length of their blocks."""

from __future__ import annotations

import pytest

from calib.formats.format import Format
from deploy.run.settings import Settings
from deploy.stages.choosing import score_for, search
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.methods import METHODS
from smpq.problem.budget import Budget
from smpq.solve.allocate import Ceiling, Impossible
from tests.linear_task import formats


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


def test_it_says_what_it_decides():
    assert METHODS["slim-llm"].decides == "groups of columns"
    assert Format.from_text("wm2a16b8").weight == Format.from_text("wm2a16b12").weight
