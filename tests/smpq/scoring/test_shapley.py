import itertools
import math

import numpy as np
import pytest
from msgspec.structs import replace

from calib.errors import UserError
from calib.files.storage import json_text, read_record, write_record
from calib.formats.format import FP32, Format
from smpq.files import ScoresFile
from smpq.problem.policy import Policy, Space
from smpq.scoring.scores import Scores
from smpq.scoring.shapley import ScoringLimits, _Sampler, estimate
from tests.smpq.problems import W2A8, W4A16, W8A8, Additive, policies, random_values, space_of


def losses(space: Space, seed: int = 0):
    """Values that fall with the bits, as those of a network do; nothing for the float format."""
    generator = np.random.default_rng(seed)
    return {
        name: {
            f: 0.0 if f.is_float else -float(generator.uniform(0.5, 1.5)) * 4.0 ** -(f.weight_bits / 2) for f in formats
        }
        for name, formats in space.formats.items()
    }


class Interacting(Additive):
    """Errors of neighbours add to each other: a sum plus products of pairs."""

    def __call__(self, policy: Policy) -> float:
        alone = [self.values[name][chosen] for name, chosen in policy.formats.items()]
        return super().__call__(policy) - 8 * sum(a * b for a, b in itertools.pairwise(alone))


def exact(game, space: Space, end: Policy) -> dict[tuple[str, Format], float]:
    """The mean marginal of every move over all orders of the walk to one policy."""
    groups = [group.name for group in space.groups]
    sums: dict[tuple[str, Format], float] = {}
    for order in itertools.permutations(groups):
        context = space.uniform(FP32)
        for name in order:
            for chosen in space.formats[name]:
                if chosen != FP32:
                    sums[name, chosen] = (
                        sums.get((name, chosen), 0.0) + game(context.with_format(name, chosen)) - game(context)
                    )
            context = context.with_format(name, end[name])
    return {key: value / math.factorial(len(groups)) for key, value in sums.items()}


@pytest.mark.parametrize("seed", range(5))
def test_the_marginals_of_a_walk_sum_to_what_it_changes(seed):
    space = space_of(5, (W8A8, W4A16, W2A8, FP32))
    game = Interacting(losses(space), constant=3.0)
    generator = np.random.default_rng(seed)
    every = list(policies(space))
    end = every[int(generator.integers(len(every)))]
    marginals = _Sampler(space, generator, lambda _: None).walk(end, game)
    taken = sum(marginals[name, chosen] for name, chosen in end.formats.items() if chosen != FP32)
    assert taken == pytest.approx(game(end) - game(space.uniform(FP32)))
    assert set(marginals) == {(name, f) for name in space.formats for f in (W8A8, W4A16, W2A8)}


def test_an_additive_game_is_recovered_exactly():
    space = space_of(6)
    values = losses(space)
    scores = estimate(Additive(values, constant=5.0), space, ScoringLimits(evaluations=60))
    for name, row in scores.entries.items():
        for chosen, score in row.items():
            assert score.value == pytest.approx(values[name][chosen], abs=1e-12)
            assert score.alone == pytest.approx(values[name][chosen], abs=1e-12)
            assert score.standard_error == pytest.approx(0, abs=1e-12)
    assert scores.efficiency_gap == pytest.approx(0, abs=1e-12)


def test_positive_scores_are_allowed():
    space = space_of(4)
    values = {name: {f: 0.0 if f.is_float else 0.1 for f in row} for name, row in space.formats.items()}
    scores = estimate(Additive(values), space, ScoringLimits(evaluations=40))
    assert scores.values()["g0"][W8A8] == pytest.approx(0.1)


def test_a_null_player_scores_zero():
    space = space_of(5)
    values = losses(space)
    values["g2"] = dict.fromkeys(values["g2"], 0.0)
    scores = estimate(Interacting(values), space, ScoringLimits(evaluations=200))
    for score in scores.entries["g2"].values():
        assert score.value == pytest.approx(0, abs=1e-12)
    assert scores.entries["g1"][W4A16].value < 0


def test_twins_score_alike():
    space = space_of(4)
    values = {name: dict(losses(space)["g0"]) for name in space.formats}
    scores = estimate(Interacting(values), space, ScoringLimits(evaluations=2000))
    first, last = (scores.entries[name][W4A16] for name in ("g0", "g3"))
    assert abs(first.value - last.value) < 4 * math.hypot(first.standard_error, last.standard_error)


@pytest.mark.parametrize("seed", range(3))
def test_an_interacting_game_against_all_orders(seed):
    # one format and a range of bits that ends every walk at the same policy, so that enumeration is exact
    space = space_of(5, (W4A16, FP32))
    game = Interacting(losses(space))
    scores = estimate(game, space, ScoringLimits(evaluations=600), seed, bits=(4.0, 4.0))
    end = space.uniform(W4A16)
    for (name, chosen), value in exact(game, space, end).items():
        score = scores.entries[name][chosen]
        assert score.samples > 50
        assert score.standard_error > 0
        assert abs(score.value - value) < 4 * score.standard_error
    assert sum(row[W4A16].value for row in scores.entries.values()) == pytest.approx(
        game(end) - game(space.uniform(FP32))
    )
    inner = [scores.entries[f"g{i}"][W4A16] for i in (1, 2, 3)]
    assert all(score.value < score.alone for score in inner), "the interaction does not show"


def test_the_formats_of_a_group_are_compared_in_the_same_contexts():
    space = space_of(4, (W8A8, W4A16, W2A8, FP32))
    game = Interacting(losses(space))
    estimate(game, space, ScoringLimits(evaluations=1))
    walk = [dict(pair.split("=") for pair in key.split(",")) for key in game.asked[1 + 12 + 1 :]]
    for step in range(4):
        tried = walk[3 * step : 3 * step + 3]
        differing = [name for name in space.formats if len({policy[name] for policy in tried}) > 1]
        assert len(differing) == 1


def test_the_same_seed_gives_the_same_scores_and_another_seed_others():
    space = space_of(5)
    first, again, other = (
        estimate(Interacting(losses(space)), space, ScoringLimits(evaluations=80), seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first.entries != other.entries


def test_contexts_lie_in_the_range_of_bits_that_is_asked_for():
    space = space_of(12, (W8A8, W4A16, W2A8))
    values = {name: {**row, FP32: 0.0} for name, row in losses(space).items()}
    sampler = _Sampler(space, np.random.default_rng(0), lambda _: None)
    alone = sampler.alone(Additive(values))
    drawn = [sampler.draw_policy(alone, 3.0, 4.0) for _ in range(40)]
    bits = [sum(f.weight_bits for f in policy.formats.values()) / 12 for policy in drawn]
    assert all(3.0 - 0.7 < b < 4.0 + 0.7 for b in bits)
    assert len({policy.key() for policy in drawn}) > 20


@pytest.mark.parametrize("evaluations", [1, 100, 333])
def test_stops_before_more_evaluations_than_allowed(evaluations):
    space = space_of(5)
    seen: list[int] = []
    scores = estimate(Interacting(losses(space)), space, ScoringLimits(evaluations), advance=seen.append)
    assert scores.stop_reason == "evaluations"
    assert scores.evaluations == len(seen) == 10 + 10 * scores.permutations
    assert scores.evaluations <= max(evaluations, 20)
    assert scores.evaluations > evaluations - 10
    assert all(
        score.samples == scores.permutations for row in scores.entries.values() for f, score in row.items() if f != FP32
    )


def test_stops_when_the_scores_are_precise_enough():
    space = space_of(5)
    scores = estimate(Interacting(losses(space)), space, ScoringLimits(evaluations=20_000, precision=0.05))
    assert scores.stop_reason == "precision"
    assert scores.evaluations < 20_000
    cells = [score for row in scores.entries.values() for f, score in row.items() if f != FP32]
    assert max(score.standard_error for score in cells) <= 0.05 * float(np.std([score.value for score in cells]))


@pytest.mark.parametrize("arguments", [{"evaluations": -1}, {"precision": -0.1}, {"precision": 1.0}])
def test_stopping_rules_that_make_no_sense_are_user_errors(arguments):
    with pytest.raises(UserError):
        ScoringLimits(**arguments)


def test_one_sample_has_an_interval_all_the_same():
    space = space_of(3)
    scores = estimate(Interacting(losses(space)), space, ScoringLimits(evaluations=1))
    assert scores.permutations == 1
    for row in scores.entries.values():
        score = row[W4A16]
        assert score.standard_error >= abs(score.value - score.alone)
        assert score.interval[0] < score.value < score.interval[1], "that of the first layer of the walk, too"


def test_scores_come_back_from_their_file_and_wrong_files_are_user_errors(tmp_path):
    space, file = space_of(3), tmp_path / ScoresFile.NAME
    scores = estimate(Interacting(losses(space)), space, ScoringLimits(evaluations=30))
    record = scores.to_file()
    write_record(file, record)
    assert Scores.from_file(read_record(file, ScoresFile), space) == scores
    with pytest.raises(UserError, match="no score for w2a8 on g0"):
        Scores.from_file(record, space_of(3, (W2A8, FP32)))
    with pytest.raises(UserError, match="no score for w8a8 on g3"):
        Scores.from_file(record, space_of(4))
    with pytest.raises(
        UserError, match=rf"has {scores.permutations} marginals for w8a8 on g0, from 99 walks: score again"
    ):
        Scores.from_file(replace(record, permutations=99), space)
    for old, new, message in [
        ('"schema": 4', '"schema": 9', "scores.json has schema 9"),
        ('"samples": ', '"samples": -', r'expected `int` >= 0 - at `\$.scores\["g0"\]\["w8a8"\].samples`'),
        ('"w4a16"', '"w4 a16"', r'at the key `\$.scores\["g0"\]\["w4 a16"\]`'),
        ('"kl"', "NaN", "is not valid JSON"),
    ]:
        text = json_text(record)
        assert old in text
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            read_record(file, ScoresFile)
    file.write_text(json_text(record).replace('"w4a16"', '"int4"', 1))
    with pytest.raises(UserError, match="unknown format 'int4'"):
        Scores.from_file(read_record(file, ScoresFile), space)


def test_values_of_any_sign_and_size_do_not_disturb_the_sampler():
    space = space_of(4)
    for scale in (1e-9, 1e6):
        values = random_values(space, np.random.default_rng(0), scale)
        values = {name: {**row, FP32: 0.0} for name, row in values.items()}
        scores = estimate(Additive(values), space, ScoringLimits(evaluations=60))
        assert scores.values()["g1"][W8A8] == pytest.approx(values["g1"][W8A8], abs=1e-9 * scale)


def test_without_walks_the_scores_are_those_of_one_change_at_a_time():
    space = space_of(4)
    game = Interacting(losses(space))
    scores = estimate(game, space, ScoringLimits(evaluations=0))
    assert scores.estimator == "one at a time"
    assert scores.permutations == 0
    assert scores.evaluations == 8
    assert scores.values() == scores.alone()
    for row in scores.entries.values():
        for chosen, score in row.items():
            assert score.standard_error == abs(score.value), "one context says nothing about the others"
            assert chosen == FP32 or score.samples == 1
    assert Scores.from_file(scores.to_file(), space) == scores
