import numpy as np

from smpq.problem.costs import CostModel
from smpq.problem.policy import Policy
from smpq.solve.allocate import Ceiling
from smpq.solve.exchange import Exchanges, changed
from tests.smpq.problems import FP32, W2A8, W4A16, W8A8, random_values, space_of

SPACE = space_of(5, (W8A8, W4A16, W2A8))
BITS = CostModel(
    "avg_bits", 0.0, {name: {f: f.weight_bits for f in (*row, FP32)} for name, row in SPACE.formats.items()}, 1.0
)
CENTRE = SPACE.uniform(W4A16)
VALUES = random_values(SPACE, np.random.default_rng(0))


def gain(policy: Policy) -> float:
    return sum(VALUES[name][chosen] - VALUES[name][CENTRE[name]] for name, chosen in policy.formats.items())


def near() -> list[Policy]:
    """Every change of one or two groups."""
    moves = [(name, f) for name in SPACE.formats for f in (W8A8, W2A8)]
    pairs = [(a, b) for a in moves for b in moves if a[0] < b[0]]
    return [changed(CENTRE, each) for each in [*((move,) for move in moves), *pairs]]


def test_the_most_promising_feasible_changes_come_first():
    ceiling = Ceiling(BITS, BITS.total(CENTRE))
    found = Exchanges(SPACE, [ceiling]).propose(CENTRE, VALUES, 6, set())
    allowed = sorted((p for p in near() if BITS.total(p) <= ceiling.limit), key=gain, reverse=True)
    assert [policy.key() for policy in found] == [policy.key() for policy in allowed[:6]]


def test_what_was_tried_or_excluded_is_not_proposed_again():
    first, second, *rest = Exchanges(SPACE, []).propose(CENTRE, VALUES, 10, set())
    again = Exchanges(SPACE, [], [second]).propose(CENTRE, VALUES, 8, {first.key()})
    assert [policy.key() for policy in again] == [policy.key() for policy in rest]


def test_a_pair_that_disappointed_falls_behind():
    exchanges = Exchanges(SPACE, [])
    pair = next(
        p for p in exchanges.propose(CENTRE, VALUES, 10, set()) if sum(p[n] != CENTRE[n] for n in SPACE.formats) == 2
    )
    exchanges.learn(CENTRE, pair, VALUES, gain(pair) - 100.0)
    count = len(near())
    assert exchanges.propose(CENTRE, VALUES, count, set())[-1] == pair


def test_nothing_is_left_when_everything_was_tried():
    assert Exchanges(SPACE, []).propose(CENTRE, VALUES, 5, {policy.key() for policy in near()}) == []
