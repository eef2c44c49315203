import numpy as np
import pytest

from calib.files.storage import json_text, record_from_text
from smpq.files import StabilityFile
from smpq.problem.costs import CostModel
from smpq.scoring.scores import Score, Scores
from smpq.scoring.shapley import ScoringLimits, estimate
from smpq.scoring.stability import CUT_SHORT, RESAMPLES, UntilSettled, decision_stability, expected_gain
from smpq.solve.allocate import Ceiling
from tests.smpq.problems import FP32, W2A8, W4A16, W8A8, Additive, space_of

SPACE = space_of(4, (W8A8, W2A8))
BITS = CostModel(
    "avg_bits", 0.0, {name: {f: float(f.weight_bits) for f in (*row, FP32)} for name, row in SPACE.formats.items()}, 1.0
)


def scores_of(marginals: dict[str, list[float]]) -> Scores:
    """Two bits cost each group what is given, walk by walk; eight bits cost nothing."""
    entries = {
        name: {
            W2A8: Score(float(np.mean(row)), 0.1, len(row), 0.0, tuple(row)),
            W8A8: Score(0.0, 0.0, len(row), 0.0, (0.0,) * len(row)),
        }
        for name, row in marginals.items()
    }
    return Scores(entries, "kl", "permutation", 0, 10, len(next(iter(marginals.values()))), "evaluations", 0.0)


def test_clear_scores_decide_always_and_equal_ones_do_not():
    """Two groups may have eight bits: one needs them clearly, of the other three nobody knows."""
    noise = np.random.default_rng(0).normal(0.0, 0.5, (3, 6))
    noise -= noise.mean(axis=1, keepdims=True) + 1.0  # equal on average
    scores = scores_of({"g0": [-9.0] * 6, "g1": list(noise[0]), "g2": list(noise[1]), "g3": list(noise[2])})
    stability = decision_stability(scores, SPACE, [Ceiling(BITS, 8 + 8 + 2 + 2)])
    assert stability.frequencies["g0"] == {W8A8: 1.0}
    assert set(stability.undecided()) <= {"g1", "g2", "g3"}
    assert len(stability.undecided()) >= 2
    for row in stability.frequencies.values():
        assert sum(row.values()) == pytest.approx(1.0)
    record = stability.to_file("a policy")
    assert (record.policy, record.resamples, record.undecided) == ("a policy", RESAMPLES, stability.undecided())
    assert record.frequencies["g0"] == {"w8a8": 1.0}
    assert record_from_text(json_text(record), StabilityFile, "it", "") == record


def test_fewer_than_three_walks_say_nothing_about_stability():
    assert decision_stability(scores_of({name: [-1.0, -2.0] for name in SPACE.formats}), SPACE, ()) is None


def test_the_expected_gain_is_what_is_not_known():
    """Two groups may have eight bits. Scores that are sure leave nothing to gain; noisy ones leave the more the noisier
    they are, and the fewer walks there are.
    """
    budget = [Ceiling(BITS, 8 + 8 + 2 + 2)]
    sure = scores_of({f"g{i}": [-1.0 - i] * 4 for i in range(4)})
    assert expected_gain(sure, SPACE, [budget]) == 0.0
    assert expected_gain(scores_of({name: [-1.0, -2.0] for name in SPACE.formats}), SPACE, [budget]) is None
    assert expected_gain(sure, SPACE, [[Ceiling(BITS, 1.0)]]) is None, "no policy is within the budget"

    def noisy(spread: float, walks: int) -> float:
        noise = np.random.default_rng(0).choice([-spread, spread], (4, walks))
        return expected_gain(scores_of({f"g{i}": list(row - 1.0) for i, row in enumerate(noise)}), SPACE, [[], budget])

    assert 0.0 < noisy(0.1, 8) < noisy(0.4, 8)
    assert noisy(0.4, 200) < noisy(0.4, 8)


def test_a_gain_is_a_share_of_the_loss_or_of_what_is_negligible():
    noise = np.random.default_rng(0).choice([-0.001, 0.001], (4, 8))
    scores = scores_of({f"g{i}": list(row - 0.002) for i, row in enumerate(noise)})
    budget = [Ceiling(BITS, 8 + 8 + 2 + 2)]  # two groups lose about 0.002 each
    of_loss, below, *above = (expected_gain(scores, SPACE, [budget], negligible=loss) for loss in (0.0, 1e-3, 0.1, 1.0))
    assert of_loss == below > 0
    assert above == [pytest.approx(10 * above[1]), above[1]]
    assert 0 < above[0] < of_loss / 10
    rule = {loss: UntilSettled(SPACE, [budget], of_loss / 10, negligible=loss)(scores) for loss in (0.0, 0.1)}
    assert rule == {0.0: None, 0.1: "stable"}


def test_sampling_stops_once_there_is_nothing_to_gain():
    space = space_of(5, (W8A8, W4A16, W2A8, FP32))
    values = {
        name: {f: 0.0 if f.is_float else -(i + 1.0) / f.weight_bits for f in row}
        for i, (name, row) in enumerate(space.formats.items())
    }
    bits = CostModel(
        "avg_bits", 0.0, {name: {f: float(f.weight_bits) for f in row} for name, row in space.formats.items()}, 1.0
    )
    rule = UntilSettled(space, [[Ceiling(bits, 20.0)]], 0.01)
    scores = estimate(Additive(values), space, ScoringLimits(5000), stop=rule)
    assert scores.stop_reason == "stable"
    assert scores.permutations == 3, "three walks are the fewest"
    assert scores.evaluations < 200
    hurried = UntilSettled(space, [[Ceiling(bits, 20.0)]], 0.01, enough=lambda: True)
    scores = estimate(Additive(values), space, ScoringLimits(5000), stop=hurried)
    assert (scores.stop_reason, scores.permutations) == (CUT_SHORT, 1)
