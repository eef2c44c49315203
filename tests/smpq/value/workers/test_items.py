import numpy as np
import pytest

from calib.formats.format import FP32
from smpq.problem.policy import Policy
from smpq.value.workers.items import cut
from tests.smpq.problems import W4A16, W8A8, policies, space_of

SPACE = space_of(5)
BEHIND = {f"g{i}": 10 * (5 - i) for i in range(5)}
STEPS = 50


def drawn(count):
    generator = np.random.default_rng(0)
    return [Policy({name: (W8A8, W4A16, FP32)[generator.integers(3)] for name in SPACE.formats}) for _ in range(count)]


def cost(asked, piece):
    """The steps of a piece: those behind the first difference to any policy before, as a prefix tree shares them."""
    total, seen = 0, []
    for index in piece:
        shared = 0
        for before in seen:
            names = [name for name in BEHIND if asked[index][name] != before[name]]
            shared = max(shared, STEPS - (BEHIND[names[0]] if names else 0))
        total += STEPS - shared
        seen.append(asked[index])
    return total


@pytest.mark.parametrize("count", [1, 2, 6, 100])
def test_every_policy_is_in_one_piece(count):
    asked = drawn(40)
    pieces = cut(asked, BEHIND, STEPS, count)
    assert sorted(index for piece in pieces for index in piece) == list(range(40))
    assert len(pieces) <= count
    assert all(pieces)


def test_policies_that_share_early_layers_stay_together():
    asked = [Policy({**SPACE.uniform(early).formats, "g3": third, "g4": fourth})
             for third in (W8A8, W4A16) for fourth in (W8A8, W4A16, FP32) for early in (W8A8, W4A16, FP32)]  # fmt: skip
    pieces = cut(asked, BEHIND, STEPS, 3)
    assert [len(piece) for piece in pieces] == [6, 6, 6]
    assert all(len({asked[index]["g0"] for index in piece}) == 1 for piece in pieces)


def test_pieces_cost_about_the_same_and_the_dearest_comes_first():
    asked = list(policies(SPACE))
    costs = [cost(asked, piece) for piece in cut(asked, BEHIND, STEPS, 6)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] < 1.15 * sum(costs) / 6
    (whole,) = cut(asked, BEHIND, STEPS, 1)
    assert sum(costs) <= cost(asked, whole) + 5 * STEPS


def test_the_same_policy_twice_and_a_single_one():
    policy = SPACE.uniform(W8A8)
    assert cut([policy], BEHIND, STEPS, 6) == [[0]]
    assert cut([policy, policy], BEHIND, STEPS, 1) == [[0, 1]]
