"""FIMA-Q's scores against the divergences that they approximate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from calib.formats.format import Format
from deploy.run.settings import Settings
from deploy.stages.run_all import open_run
from deploy.stages.scoring import score
from deploy.terminal.progress import Progress

DIGITS = Settings(
    "digits", target="simulate", formats="w2a8,w4a4,w8a8,fp32", rounding="nearest", samples=32, evaluations=9
)


def test_scores_follow_what_each_layer_costs_by_itself(tmp_path):
    with open_run(tmp_path / "run", Progress(), DIGITS) as workspace:
        scores = score(workspace, method="fima-q")
        space = workspace.space
        alone = space.uniform(space.reference)
        guessed, measured = [], []
        for group in space.groups:
            for chosen in space.formats[group.name]:
                if chosen != space.reference:
                    guessed.append(-scores.entries[group.name][chosen].value)
                    measured.append(-workspace.evaluator(alone.with_format(group.name, chosen)))
    assert min(guessed) >= 0
    assert spearmanr(guessed, measured).statistic > 0.9
    assert 1 / 3 < sum(guessed) / sum(measured) < 3, "in the unit of the divergence"


class Shared(nn.Module):
    """A layer in two blocks, of which the first does nothing with it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.middle, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(self.middle(x + 0.0 * self.shared(x)))
        return 5 * self.head(F.relu(self.shared(x)))


class Task:
    name, metric_name = "shared", "agreement"

    def __init__(self, *_):
        """Nothing is read from files."""

    def model(self):
        return Shared().eval()

    def calibration(self):
        inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return [(inputs, Shared()(inputs).argmax(1))]

    evaluation = calibration

    def metric(self, output, target):
        return (output.argmax(1) == target).float()

    def loss(self, output, target):
        return F.cross_entropy(output, target, reduction="none")


def test_every_use_of_a_layer_counts(tmp_path):
    settings = Settings(f"{__name__}:Task", target="simulate", formats="w2a16,fp32", rounding="nearest", samples=64)
    with open_run(tmp_path / "run", Progress(), settings) as workspace:
        found = score(workspace, method="fima-q").entries["shared"][Format.from_text("w2a16")]
        alone = workspace.space.uniform(workspace.space.reference)
        measured = workspace.evaluator(alone.with_format("shared", Format.from_text("w2a16")))
    assert 1 / 3 < found.value / measured < 3
