"""What the loop learns from engines that do not build."""

from __future__ import annotations

import pytest

from calib.formats.format import FP32
from tests.deploy.latency.test_loop import Bench
from tests.deploy.synthetic import W4, W8A8, space


def tried(outcome):
    return [set(step.proposal.policy.formats.items()) for step in outcome.steps]


def test_what_may_not_build_is_tried_once_behind_the_other_experiments():
    bench, doubtful = Bench(1), frozenset({("layer0", W8A8), ("layer3", W8A8)})
    for outcome in (
        bench.refusing(("layer3", W8A8), doubtful=doubtful),
        Bench(1).refusing(("layer0", W4), doubtful=doubtful),
    ):
        experiments = [
            each
            for each, step in zip(tried(outcome), outcome.steps, strict=True)
            if step.proposal.label == "experiment"
        ]
        assert not any(doubtful & each for each in experiments[:-1])
        assert doubtful <= experiments[-1]


@pytest.mark.parametrize("named", [True, False])
def test_a_refusal_of_what_may_not_build_is_learnt_from(named):
    bench, doubtful = Bench(1), frozenset({("layer0", W8A8), ("layer3", W8A8)})
    outcome = bench.refusing(("layer3", W8A8), 0.75, doubtful, named=named)
    refused = [step for step in outcome.steps if step.refusal is not None]
    assert len(refused) == 1, "one engine is lost"
    behind = tried(outcome)[outcome.steps.index(refused[0]) + 1 :]
    assert behind
    assert not any(("layer3", W8A8) in each for each in behind)
    # a runtime that names no layer may mean either of the two
    assert any(("layer0", W8A8) in each for each in behind) is named
    assert outcome.met


@pytest.mark.parametrize("culprit", [("layer0", W8A8), ("layer2", W8A8), ("layer4", W4)])
def test_a_refusal_that_names_nothing_is_narrowed_down_by_halves(culprit):
    outcome = Bench(2, space(6, W8A8, W4, FP32)).refusing(culprit, limit=0.7, measurements=20)
    refused = [index for index, step in enumerate(outcome.steps) if step.refusal is not None]
    assert len(refused) <= 4, "6 suspects are halved at most three times"
    assert any(step.proposal.label == "narrowing" for step in outcome.steps)
    behind = tried(outcome)[refused[-1] + 1 :]
    assert behind
    assert not any(culprit in each for each in behind)
    assert outcome.met
