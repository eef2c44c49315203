"""Cross terms by forward passes: exact on a quadratic game, around any policy, and what the projection does to them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calib.formats.format import FP32
from smpq.scoring.cross_terms import all_pairs, measure_pairs, moves_from, parts_within, recentred
from smpq.scoring.projection import project
from smpq.scoring.widest import doubt_about_widest
from smpq.solve.allocate import PairedValues, worth
from tests.smpq.one_by_one import OneByOne
from tests.smpq.problems import W2A8, W4A16, W8A8, policies, random_values, space_of


def quadratic_game(space, seed, pull=0.5, constant=0.25):
    """A value function of moves and pairs of them, with its model."""
    generator = np.random.default_rng(seed)
    values = random_values(space, generator)
    moves = [(group, chosen) for group, row in space.formats.items() for chosen in row]
    pairs = {pair: float(generator.normal()) * pull for pair in all_pairs(moves)}
    model = PairedValues(values, pairs)
    return OneByOne(lambda policy: constant + worth(model, policy)), model


class Fold(OneByOne):
    """A part of the samples, which adds what it pleases to every value, and writes down what it was asked for."""

    def __init__(self, function, offset):
        super().__init__(lambda policy: function(policy) + offset)
        self.asked = []

    def many(self, policies):
        asked = list(policies)
        self.asked.append(asked)
        return super().many(asked)


@pytest.mark.parametrize("seed", range(6))
def test_a_quadratic_game_is_found_around_any_policy(seed):
    space = space_of(4, (W2A8, W4A16, FP32))
    value, _ = quadratic_game(space, seed)
    centre = list(policies(space))[np.random.default_rng(seed).integers(81)]
    found = measure_pairs([value], all_pairs(moves_from(space, centre)), centre)
    in_float = {group: {FP32: 1.0} for group in space.formats}
    singles, pairs = recentred(space, found.singles, found.pairs, in_float)
    rows = {group: {chosen: singles[group, chosen] for chosen in row} for group, row in space.formats.items()}
    model = PairedValues(rows, pairs)
    for policy in policies(space):
        expected = value(policy) - value(space.uniform(FP32))
        assert worth(model, policy) == pytest.approx(expected, abs=1e-9)
    assert all(row[FP32] == 0 for row in rows.values())
    assert all(FP32 not in (one[1], other[1]) for one, other in pairs)


def test_means_over_what_the_others_have_and_pairs_that_say_nothing_on_average():
    space = space_of(3, (W2A8, W4A16, FP32))
    value, _ = quadratic_game(space, 4)
    centre = space.uniform(W4A16)
    shares = {group: {W2A8: 0.2, W4A16: 0.5, FP32: 0.3} for group in space.formats}
    found = measure_pairs([value], all_pairs(moves_from(space, centre)), centre)
    singles, pairs = recentred(space, found.singles, found.pairs, shares)
    weight = {policy.key(): np.prod([shares[g][c] for g, c in policy.formats.items()]) for policy in policies(space)}
    mean = sum(weight[policy.key()] * value(policy) for policy in policies(space))
    for move, single in singles.items():
        having = [policy for policy in policies(space) if policy[move[0]] == move[1]]
        conditional = sum(weight[p.key()] * value(p) for p in having) / shares[move[0]][move[1]]
        assert single == pytest.approx(conditional - mean, abs=1e-9)
    rows = {group: {chosen: singles[group, chosen] for chosen in row} for group, row in space.formats.items()}
    for policy in policies(space):
        assert worth(PairedValues(rows, pairs), policy) == pytest.approx(value(policy) - mean, abs=1e-9)


def test_a_pair_is_compared_on_the_samples_that_its_moves_were_measured_on():
    space = space_of(3, (W2A8, W4A16, FP32))
    value, model = quadratic_game(space, 1)
    centre = space.uniform(FP32)
    moves = moves_from(space, centre)
    folds = [Fold(value, offset) for offset in (0.0, 100.0, -3.0, 7.0)]
    whole = measure_pairs([value], all_pairs(moves), centre)
    for parts in (1, 3, 4):
        found = measure_pairs(folds, all_pairs(moves), centre, parts)
        assert found.pairs == pytest.approx(whole.pairs, abs=1e-9)
        assert found.singles == pytest.approx(whole.singles, abs=1e-9)
        assert found.evaluations == len(moves) * 4 + len(found.pairs) * parts
    assert model.pairs.keys() > found.pairs.keys()


def test_pairs_are_asked_for_in_the_order_in_which_they_share_most():
    space = space_of(5, (W2A8, W4A16, FP32))
    fold = Fold(lambda _: 0.0, 0.0)
    centre = space.uniform(FP32)
    measure_pairs([fold], all_pairs(moves_from(space, centre)), centre)
    names = list(space.formats)
    firsts = [
        next((name, policy[name]) for name in names if policy[name] != FP32)
        for asked in fold.asked[1:]
        for policy in asked
        if sum(chosen != FP32 for chosen in policy.formats.values()) == 2
    ]
    assert len(firsts) == 40
    assert len([first for first, _ in itertools.groupby(firsts)]) == len(set(firsts)), "one after the other"
    assert len(fold.asked) < 5, "few calls, each of several moves"


def test_as_many_parts_as_the_evaluations_allow():
    assert [parts_within(*each) for each in ((400, 1710, 8), (1200, 400, 8), (400, 10, 8), (0, 5, 8))] == [1, 3, 8, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_projected_model_predicts_no_gain_and_says_what_it_changed(seed):
    space = space_of(4, (W2A8, W4A16, FP32))
    value, _ = quadratic_game(space, seed, pull=2.0)
    centre = space.uniform(FP32)
    found = measure_pairs([value], all_pairs(moves_from(space, centre)), centre)
    convex = project(found.singles, found.pairs)
    rows = {
        group: {chosen: convex.singles.get((group, chosen), 0.0) for chosen in row}
        for group, row in space.formats.items()
    }
    model = PairedValues(rows, convex.pairs)
    assert max(worth(model, policy) for policy in policies(space)) <= 1e-9
    assert 0 < convex.negative < convex.moves == len(found.singles)
    shifts = [abs(convex.singles[move] - each) for move, each in found.singles.items()]
    assert convex.largest_shift == max(shifts) > 0
    again = project(convex.singles, dict(convex.pairs))
    assert again.pairs.keys() == convex.pairs.keys()
    assert f"{convex.negative} of {convex.moves} eigenvalues were negative" in str(convex)


def test_a_convex_model_stays_as_it_is():
    moves = [("g0", W2A8), ("g1", W2A8)]
    convex = project(dict.fromkeys(moves, -1.0), {(moves[0], moves[1]): -0.5})
    assert convex.singles == pytest.approx(dict.fromkeys(moves, -1.0))
    assert convex.pairs == pytest.approx({(moves[0], moves[1]): -0.5})
    assert (convex.negative, convex.largest_shift) == (0, pytest.approx(0))


def test_no_budget_gives_the_widest_format_or_the_terms_that_break_it_are_named():
    """METHODS: the check that fails for CLADO with 2-bit errors, which are too large for a model of second order."""
    space = space_of(3, (W2A8, W8A8))
    values = {group: {W2A8: -1.0, W8A8: -0.1} for group in space.formats}
    assert doubt_about_widest(space, values) is None
    paired = PairedValues(values, {(("g0", W2A8), ("g2", W2A8)): 2.5, (("g0", W2A8), ("g1", W8A8)): -0.01})
    text = doubt_about_widest(space, paired)
    assert text is not None
    assert "2 of 3 layers less than the widest" in text
    assert "gain of 0.69" in text
    assert "g0 in w2a8 with g2 in w2a8 +2.5" in text
    single = {**values, "g1": {W2A8: 0.3, W8A8: -0.1}}
    assert "g1 in w2a8 +0.4" in str(doubt_about_widest(space, single))
