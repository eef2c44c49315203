"""The methods that see pairs, on games of numbers whose best policy is known from looking at all."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest

from calib.formats.format import FP32
from smpq.files import ScoresFile
from smpq.methods import METHODS, Limits, SearchProblem
from smpq.scoring.scores import Scores
from smpq.scoring.stability import CUT_SHORT
from smpq.solve.allocate import Ceiling, PairedValues, Problem, worth
from smpq.solve.quadratic import solve_pairs
from tests.commands import done
from tests.smpq.methods.test_rules import W2, W4, W8, bits_of
from tests.smpq.one_by_one import OneByOne
from tests.smpq.problems import policies, space_of
from tests.smpq.scoring.test_cross_terms import quadratic_game

PAIRED = ("clado", "clado-near", "hybrid", "coopq")


class Watcher:
    def __init__(self, patience=10**9):
        self.patience = patience

    def enough(self):
        self.patience -= 1
        return self.patience < 0

    @contextmanager
    def bar(self, _name, total):
        yield lambda: None


def problem_of(space, value, bits, evaluations=4000, ceilings=True) -> SearchProblem:
    model = replace(bits_of(space), name="size")
    limit = Ceiling(model, bits * sum(group.parameters for group in space.groups))
    value.folds = ()
    return SearchProblem(
        task=None, traced=None, original=None, folded=(), space=space, costs={"size": model},
        ceilings=(limit,) if ceilings else (), batches=(), judging=(), value_name="kl", limits=Limits(evaluations),
        seed=0, device="cpu", fingerprint="", progress=Watcher(), files=None, make_fake_quantizer=lambda: None,
        make_evaluator=lambda: value,
    )  # type: ignore[arg-type] # fmt: skip


def best_within(problem, value):
    (ceiling,) = problem.ceilings
    allowed = [policy for policy in policies(problem.space) if ceiling.model.total(policy) <= ceiling.limit]
    return max(map(value, allowed))


def convex_game(space, seed):
    """A loss of second order: moves with errors that add up or cancel, and a squared length of their sum."""
    import numpy as np

    generator = np.random.default_rng(seed)
    errors = {
        (group, chosen): generator.normal(size=6) * 2.0**-chosen.weight_bits if chosen != FP32 else np.zeros(6)
        for group, row in space.formats.items()
        for chosen in row
    }
    return OneByOne(lambda policy: -float(np.square(sum(errors[move] for move in policy.formats.items())).sum()))


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_of_second_order_is_solved_exactly(seed):
    space = space_of(6, (W2, FP32))
    value = convex_game(space, seed)
    problem = problem_of(space, value, bits=18)
    scores = METHODS["clado"].score(problem).scores
    policy = METHODS["clado"].policy(space, scores, problem.ceilings)
    assert value(policy) == pytest.approx(best_within(problem, value))
    model = scores.objective()
    assert all(worth(model, each) == pytest.approx(value(each)) for each in policies(space))


def test_a_game_of_two_widths_and_pairs_is_solved_exactly_by_shapley_interactions():
    space = space_of(6, (W4, W8))
    value, _ = quadratic_game(space, 3)
    problem = problem_of(space, value, bits=6)
    scores = METHODS["coopq"].score(problem).scores
    assert value(METHODS["coopq"].policy(space, scores, problem.ceilings)) == pytest.approx(best_within(problem, value))
    assert scores.pairs


@pytest.mark.parametrize("name", [name for name in PAIRED if name != "hybrid"])
def test_pairs_find_what_single_moves_do_not(name):
    """Two layers whose errors cancel when both have two bits: by themselves each is the worst to take bits from."""
    space = space_of(8, (W2, W8))
    names = list(space.formats)

    def value(policy):
        low = [policy[group] == W2 for group in names]
        return -(1.0 * low[0] + 1.0 * low[1] - 1.9 * (low[0] and low[1]) + 0.3 * sum(low[2:]))

    game = OneByOne(value)
    problem = problem_of(space, game, bits=5.75)
    method = METHODS[name]
    scores = method.score(problem).scores
    alone = solve_pairs(Problem(space, scores.alone(), problem.ceilings))
    assert alone is not None
    assert value(alone.policy) == pytest.approx(-0.9), "three of the others"
    chosen = method.policy(space, scores, problem.ceilings)
    assert value(chosen) == best_within(problem, value) == pytest.approx(-0.4), scores.notes


@pytest.mark.parametrize("name", PAIRED)
def test_without_a_budget_that_is_known_and_with_no_evaluations(name):
    space = space_of(3, (W2, W8, FP32))
    game, _ = quadratic_game(space, 0)
    for evaluations, ceilings in ((0, True), (500, False)):
        problem = problem_of(space, game, 9, evaluations, ceilings=ceilings)
        scores = METHODS[name].score(problem).scores
        assert bool(scores.pairs) == bool(evaluations)
        assert METHODS[name].policy(space, scores, problem_of(space, game, 9).ceilings)


@pytest.mark.parametrize("name", PAIRED)
def test_what_is_read_back_is_what_was_written(name):
    space = space_of(3, (W2, W8, FP32))
    game, _ = quadratic_game(space, 1)
    scores = METHODS[name].score(problem_of(space, game, 9)).scores
    assert scores.pairs
    assert scores.notes
    record = scores.to_file()
    assert Scores.from_file(record, space) == scores
    assert isinstance(Scores.from_file(record, space).objective(), PairedValues)
    with pytest.raises(ValueError, match="each pair of moves stands once"):
        ScoresFile(
            **{**{n: getattr(record, n) for n in record.__struct_fields__}, "pairs": (*record.pairs, record.pairs[0])}
        )
    first = record.pairs[0]
    strange = type(first)("another", first.one_format, first.other, first.other_format, 1.0)
    with pytest.raises(Exception, match=r"scores\.json has pairs.* that have no score of their own.*score again"):
        Scores.from_file(
            ScoresFile(**{**{n: getattr(record, n) for n in record.__struct_fields__}, "pairs": (strange,)}), space
        )


@pytest.mark.parametrize("name", PAIRED)
def test_who_waits_no_longer_gets_what_there_is(name):
    """A run that takes it up again goes on from there, as it does with walks that were cut short."""
    space = space_of(7, (W2, W4, FP32))
    game, _ = quadratic_game(space, 1)
    problem = replace(problem_of(space, game, 9, evaluations=80), progress=Watcher(1))
    cut, whole = (METHODS[name].score(each).scores for each in (problem, replace(problem, progress=Watcher())))
    assert (cut.stop_reason, whole.stop_reason != CUT_SHORT) == (CUT_SHORT, True)
    assert cut.evaluations < whole.evaluations
    assert METHODS[name].policy(space, cut, problem.ceilings)


def test_one_order_of_many_is_cut_short():
    space = space_of(7, (W2, W4))
    game, _ = quadratic_game(space, 1)
    scores = METHODS["coopq"].score(replace(problem_of(space, game, 3, 80), progress=Watcher(0))).scores
    assert scores.pairs
    assert (scores.estimator, scores.stop_reason) == ("progressive Shapley interactions", CUT_SHORT)


def test_half_of_a_cross_term_counts_in_the_hybrid():
    space = space_of(3, (W2, W8))
    game = OneByOne(lambda policy: -1.0 * (policy["g0"] == W2) + 1.8 * (policy["g0"] == policy["g1"] == W2))
    scores = METHODS["hybrid"].score(problem_of(space, game, 8)).scores
    corners = [
        space.uniform(W8).with_format("g0", one).with_format("g1", other) for one in (W2, W8) for other in (W2, W8)
    ]
    both, first, second, none = (worth(scores.objective(), policy) for policy in corners)
    assert both - first - second + none == pytest.approx(1.8 / 2)


def test_the_hybrid_says_how_many_pairs_it_measured():
    space = space_of(6, (W2, W4, FP32))
    game, _ = quadratic_game(space, 2)
    scores = METHODS["hybrid"].score(problem_of(space, game, 9, evaluations=80)).scores
    assert "cross terms of 20 of 60 pairs" in scores.notes[0]
    layers = {(one[0], other[0]) for one, other in scores.pairs}
    assert len(layers) == 5, "all pairs of two layers, or none"


@pytest.mark.slow
def test_the_terminal_and_the_report_say_whether_the_plan_is_proven(tmp_path):
    run = tmp_path / "run"
    task = ("--task", "tests.tiny_task:task", "--target", "simulate", "--formats", "w4a8,w8a8,fp32", "--samples", "16")
    said = done("run", *task, "--rounding", "nearest", "--method", "clado", "--budget", "avg_bits=6", "--out", run)
    text = said.err + said.out
    assert "plan of the scores, pairs of layers included: proven the best for these scores" in text
    assert "12 of 12 pairs on 1 of 1 parts of the samples" in text
    stability = json.loads((run / "stability.json").read_text())
    assert stability["allocation"]["value"] == stability["allocation"]["bound"]
    page = (run / "report.html").read_text()
    assert "The best plan for these scores, pairs of layers included, is worth" in page
    assert "12 of 12 pairs on 1 of 1 parts of the samples" in page
