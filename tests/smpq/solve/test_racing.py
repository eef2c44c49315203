import numpy as np
import pytest

from smpq.problem.policy import Policy
from smpq.solve.racing import race
from tests.smpq.problems import FP32, W4A16, W8A8, policies, space_of

SPACE = space_of(5, (W8A8, W4A16, FP32))
START = SPACE.uniform(W8A8)


class Parts:
    """Values of policies on eight parts of the samples: their worth, and noise of each part."""

    def __init__(self, noise: float, parts: int = 8) -> None:
        draw = np.random.default_rng(0)
        self.asked: list[int] = []
        self.worth = {policy.key(): float(draw.normal()) for policy in policies(SPACE)}
        self.noise = [{key: noise * float(draw.normal()) for key in self.worth} for _ in range(parts)]

    def part(self, numbers: range) -> "Part":
        return Part(self, numbers)


class Part:
    def __init__(self, whole: Parts, numbers: range) -> None:
        self._whole = whole
        self._numbers = numbers

    def __call__(self, policy: Policy) -> float:
        return self.many([policy])[0]

    def many(self, wanted) -> list[float]:
        keys = [policy.key() for policy in wanted]
        self._whole.asked.append(len(keys) * len(self._numbers))
        noise = self._whole.noise
        return [self._whole.worth[key] + float(np.mean([noise[n][key] for n in self._numbers])) for key in keys]


def raced(noise: float, count: int = 24, parts: int = 8):
    whole = Parts(noise, parts)
    value = whole.part(range(parts))
    folds = [whole.part(range(n, n + 1)) for n in range(parts)] if parts > 1 else [value]
    candidates = [policy for policy in policies(SPACE) if policy != START][:count]
    found = race(value, folds, START, candidates)
    cost = sum(whole.asked)
    return found, candidates, value, cost


def test_without_noise_the_best_wins_for_a_fraction_of_the_cost():
    found, candidates, value, cost = raced(0.0)
    best = max(candidates, key=value)
    assert found.finalists[0] == (best, value(best))
    assert len(found.finalists) <= 2
    assert cost < 8 * len(candidates) / 2
    assert found.gains == pytest.approx([value(policy) - value(START) for policy in candidates])


def test_with_noise_the_winner_is_judged_on_all_samples():
    found, candidates, value, _ = raced(0.5)
    policy, worth = found.finalists[0]
    assert worth == value(policy)
    assert sorted(map(value, candidates), reverse=True).index(worth) < 4


def test_nobody_is_evaluated_on_all_samples_where_nobody_is_ahead():
    whole = Parts(0.0)
    whole.worth[START.key()] = 100.0
    folds = [whole.part(range(n, n + 1)) for n in range(8)]
    candidates = [policy for policy in policies(SPACE) if policy != START][:10]
    found = race(whole.part(range(8)), folds, START, candidates)
    assert found.finalists == ()
    assert sum(whole.asked) == 11, "one part tells"


def test_with_one_part_all_are_evaluated():
    found, candidates, value, _ = raced(0.3, parts=1)
    assert sorted(found.finalists, key=lambda each: each[0].key()) == sorted(
        ((policy, value(policy)) for policy in candidates), key=lambda each: each[0].key()
    )
    assert raced(0.3, count=0, parts=8)[0].finalists == ()
