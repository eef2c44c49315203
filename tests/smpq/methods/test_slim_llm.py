"""SliM-LLM as a method: one average for all layers, whatever the length of their blocks."""

from __future__ import annotations

import pytest

from calib.formats.format import Format
from deploy.run.settings import Settings
from deploy.stages import search
from deploy.stages.choosing import score_for
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.methods import METHODS
from smpq.problem.budget import Budget
from smpq.solve.allocate import Ceiling, Impossible

FORMATS = "wm2a16b8,wm2.5a16b8,wm3a16b8,wm2a16b12,wm2.5a16b12,wm3a16b12"


@pytest.fixture
def workspace(tmp_path):
    settings = Settings(
        "tests.smpq.methods.test_slim_llm:task", target="simulate", formats=FORMATS, rounding="slim", widths="slim",
        samples=16, evaluations=9,
    )  # fmt: skip
    with open_run(tmp_path / "run", Progress(), settings) as opened:
        yield opened


def task(data=None, weights=None):
    """Two linear layers: 16 inputs, which 12 does not divide, and 36, which 8 does not divide."""
    del data, weights
    import torch
    from torch import nn

    from calib.task import Batch

    class Two:
        name = "two"
        metric_name = "agreement"

        def model(self):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(16, 36), nn.ReLU(), nn.Linear(36, 5)).eval()

        def calibration(self):
            torch.manual_seed(1)
            return [Batch((torch.randn(16, 16),), None) for _ in range(3)]

        def evaluation(self):
            return self.calibration()

        def metric(self, output, target):
            del target
            return (output[:, 0] > 0).float()

        def loss(self, output, target):
            del target
            return output.square().mean(1)

    return Two()


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
