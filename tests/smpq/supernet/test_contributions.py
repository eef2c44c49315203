import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from smpq.files import EstimateRow
from smpq.supernet.contributions import Contributions
from smpq.supernet.network import Operation
from smpq.supernet.removal import RemovalWalks

OPERATIONS = [
    *(Operation("a", "weight", f"w{bits}", bits) for bits in (2, 3, 4)),
    *(Operation("a", "activation", f"a{bits}", bits) for bits in (4, 8)),
]
ROWS = ((0, 1, 2), (3, 4))


def removals(seed, worth=(0.0, 0.1, 0.3, 0.05, 0.2)):
    def games(coalitions):
        return (1.0 + coalitions @ np.array(worth) + 0.1 * coalitions[:, 1] * coalitions[:, 4])[:, None]

    return RemovalWalks(ROWS, walks=4, gamma=0.0).estimate(games, (seed, 0))[0]


def standardised(phi):
    return np.concatenate([(part - part.mean()) / part.std() for part in (phi[:3], phi[3:])])


def test_the_score_is_the_momentum_of_standardised_values():
    found, expected = Contributions.start(OPERATIONS), np.zeros(5)
    for seed in range(3):
        update = removals(seed)
        found = found.updated(update, 0.8)
        expected = 0.8 * expected + 0.2 * standardised(update.estimate.values)
        assert found.score == pytest.approx(expected)
    assert found.updates == 3
    assert found.marginals.shape == found.walks.shape == (12, 5)
    assert found.mean == pytest.approx(np.mean([removals(seed).estimate.values for seed in range(3)], axis=0))


def test_the_standard_error_is_that_of_the_walks():
    update = removals(0)
    found = Contributions.start(OPERATIONS).updated(update, 0.8)
    spread = np.repeat([update.estimate.values[:3].std(), update.estimate.values[3:].std()], [3, 2])
    errors, plain = found.standard_errors()
    assert errors == pytest.approx(0.2 * update.estimate.standard_errors / spread)
    assert plain == pytest.approx(update.estimate.standard_errors)


def of_samples(noise):
    """A game in which each sample has worths of its own, and after it the same on eight parts of the samples."""

    def games(coalitions):
        each = coalitions @ noise.T
        return np.stack([each.mean(1), *(each[:, part::8].mean(1) for part in range(8))], axis=1)

    return games


def test_the_standard_error_counts_the_samples():
    walks, generator, means, errors = RemovalWalks(ROWS, walks=4, gamma=0.0), np.random.default_rng(0), [], []
    for number in range(300):
        whole, *parts = walks.estimate(of_samples(generator.normal(1.0, 2.0, (64, 5))), (number, 0))
        update = replace(whole, parts=np.stack([part.marginals.mean(0) for part in parts]))
        found = Contributions.start(OPERATIONS).updated(update, 0.8)
        means.append(found.mean)
        errors.append(found.standard_errors()[1])
    assert np.sqrt(np.mean(np.square(errors), 0)) == pytest.approx(np.std(means, 0), rel=0.2)


def test_what_each_part_of_the_samples_says_accumulates_as_the_score_does():
    found = Contributions.start(OPERATIONS)
    wanted = np.zeros((2, 5))
    for seed in range(3):
        update = removals(seed)
        update = replace(update, parts=np.stack([update.marginals.mean(0) - 0.1, update.marginals.mean(0) + 0.1]))
        spread = np.repeat([update.estimate.values[:3].std(), update.estimate.values[3:].std()], [3, 2])
        wanted = 0.8 * wanted + 0.2 * update.parts / spread
        found = found.updated(update, 0.8)
    assert found.parts == pytest.approx(wanted)
    assert found.mean_parts.mean(0) == pytest.approx(found.mean)
    alone = replace(found, parts=found.parts[:0], mean_parts=found.mean_parts[:0])
    error = np.hypot(alone.standard_errors()[1], 0.1)
    assert found.standard_errors()[1] == pytest.approx(error), "the parts move together"
    again = read_back(found)
    assert np.array_equal(again.parts, found.parts)
    assert np.array_equal(again.mean_parts, found.mean_parts)


def test_deviation_is_subtracted():
    update = removals(1)
    low = update.marginals.mean(0) - update.marginals.std(0)
    found = Contributions.start(OPERATIONS).updated(update, 0.0, deviation=True)
    assert found.score == pytest.approx(standardised(low))


def test_equal_values_decide_nothing():
    found = Contributions.start(OPERATIONS).updated(removals(0, worth=(0, 0, 0, 0, 0)), 0.8)
    assert np.isfinite(found.score).all()
    flat = RemovalWalks(ROWS, walks=2, gamma=0.0).estimate(lambda rows: np.ones((len(rows), 1)), (0, 0))[0]
    assert Contributions.start(OPERATIONS).updated(flat, 0.8).score.tolist() == [0.0] * 5


def read_back(found, operations=OPERATIONS):
    return Contributions.from_row(msgspec.json.decode(json.dumps(found.to_json()), type=EstimateRow), operations)


def test_a_file_reads_back():
    found = Contributions.start(OPERATIONS).updated(removals(0), 0.8).updated(removals(1), 0.8)
    again = read_back(found)
    assert np.array_equal(again.walks, found.walks)
    assert np.array_equal(again.marginals, found.marginals)
    assert again.score == pytest.approx(found.score, abs=1e-12)
    start = Contributions.start(OPERATIONS)
    assert read_back(start).to_json() == start.to_json()
    with pytest.raises(ValueError, match="5 operations"):
        read_back(found, OPERATIONS[:3])


def test_operations_stand_there_once():
    found = Contributions.start(OPERATIONS).updated(removals(0), 0.8).to_json()
    found["operations"][1] = found["operations"][0]
    with pytest.raises(ValueError, match="each once"):
        Contributions.from_row(msgspec.convert(found, EstimateRow), OPERATIONS)


@pytest.mark.parametrize(
    "change", [{"walks": 3}, {"updates": 3}, {"updates": 0}, {"truncated": 5}, {"evaluations": -1}]
)
def test_counts_fit_the_walks(change):
    found = Contributions.start(OPERATIONS).updated(removals(0), 0.8).to_json()
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**found, **change}, EstimateRow)
