"""FIMA-Q's scores against the divergences that they approximate."""

from __future__ import annotations

from scipy.stats import spearmanr

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
