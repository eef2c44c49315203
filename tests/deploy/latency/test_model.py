import dataclasses

import numpy as np
import pytest

from calib.formats.format import FP32
from deploy.latency.designs import designed_policies, random_policies
from deploy.latency.model import fit
from deploy.latency.observed import Observation
from deploy.latency.terms import work_shares
from smpq.problem.joins import Edge
from smpq.problem.policy import Join, Policy
from smpq.solve.allocate import Ceiling, Problem, allocate
from tests.deploy.synthetic import W4, W8A8, Truth, chain, policies, space

NOISE = 0.004


def edges(of):
    return [Edge(first, second, 64) for first, second in chain(of)]


def observed(of, truth, count, seed, noise=NOISE):
    """What measuring designed policies would give."""
    generator = np.random.default_rng(seed)
    return [
        Observation(policy, truth.ratio(policy) + noise * generator.standard_normal(), max(noise, 1e-4))
        for policy in designed_policies(of, edges(of), count, seed)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_few_engines_predict_all_others(seed):
    of = space(6, W8A8, W4, FP32)
    truth = Truth.drawn(of, seed)
    model = fit(of, edges(of), observed(of, truth, 24, seed))
    everything = list(policies(of))
    assert len(everything) == 729
    errors = np.array([model.predict(policy)[0] - truth.ratio(policy) for policy in everything])
    spread = np.std([truth.ratio(policy) for policy in everything])
    assert np.sqrt((errors**2).mean()) < 0.25 * spread
    assert np.abs(errors).max() < 0.08


def test_intervals_cover_what_is_measured():
    covered = []
    for seed in range(6):
        of = space(6, W8A8, FP32)
        truth = Truth.drawn(of, seed)
        model = fit(of, edges(of), observed(of, truth, 12, seed))
        for policy in policies(of):
            mean, error = model.predict(policy)
            assert error >= 0.003, "never surer than a measurement"
            covered.append(abs(mean - truth.ratio(policy)) <= 1.96 * error)
    assert np.mean(covered) > 0.85


def test_more_engines_make_surer():
    of = space(6, W8A8, FP32)
    truth = Truth.drawn(of, 0)
    few, many = (fit(of, edges(of), observed(of, truth, count, 0)) for count in (4, 40))
    rows = list(policies(of))
    assert sum(many.predict(p)[1] for p in rows) < sum(few.predict(p)[1] for p in rows)


@pytest.mark.parametrize("crossing", [0.03, 0.0, -0.03])
def test_a_crossing_never_pays(crossing):
    of = space(5, W8A8, FP32)
    model = fit(of, edges(of), observed(of, Truth.drawn(of, 1, crossing), 16, 1))
    found = {
        (term.first, term.second): value
        for term, value in zip(model.terms, model.coefficients, strict=True)
        if term.kind == "edge"
    }
    assert set(found) == set(chain(of))
    assert min(found.values()) >= 0.0
    assert all(transition.cost >= 0.0 for transition in model.cost_model().transitions)
    if crossing > 0:
        assert np.mean(list(found.values())) == pytest.approx(crossing, abs=0.015)


def test_the_solver_sees_the_same_numbers():
    of = space(4, W8A8, W4, FP32)
    model = fit(of, edges(of), observed(of, Truth.drawn(of, 2), 16, 2))
    cost = model.cost_model()
    for policy in policies(of):
        assert cost.total(policy) == pytest.approx(model.predict(policy)[0], abs=1e-9)
    assert cost.total(of.uniform(FP32)) == pytest.approx(1.0)


def test_without_integer_formats_nothing_crosses():
    of = space(4, W4, FP32)
    model = fit(of, edges(of), observed(of, Truth.drawn(of, 3), 8, 3))
    assert {term.kind for term in model.terms} == {"format"}


def test_before_anything_is_measured_larger_layers_are_expected_to_save_more():
    of = space(3, W8A8, FP32)
    model = fit(of, edges(of), [])
    parts = model.cost_model().parts
    assert parts["layer2"][W8A8] < parts["layer1"][W8A8] < parts["layer0"][W8A8] < 0
    shares = work_shares(of)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["layer2"] == pytest.approx(3 * shares["layer0"])


def test_designed_policies_are_different_allowed_and_reproducible():
    of = space(8, W8A8, W4, FP32)
    designed = designed_policies(of, edges(of), 14, 5)
    keys = [policy.key() for policy in designed]
    assert len(set(keys)) == len(keys)
    assert 10 <= len(keys) <= 14
    assert {of.uniform(W8A8).key(), of.uniform(W4).key()} <= set(keys)
    assert keys == [policy.key() for policy in designed_policies(of, edges(of), 14, 5)]
    assert keys != [policy.key() for policy in designed_policies(of, edges(of), 14, 6)]
    for policy in designed:
        assert all(policy[group.name] in of.formats[group.name] for group in of.groups)


def joined():
    """A chain whose last layer reads the sum of the first two."""
    of = space(3, W8A8, FP32)
    return dataclasses.replace(of, joins=(Join("sum", ("layer0", "layer1"), ("layer2",)),))


def test_where_everything_may_be_refused_there_are_as_many_designs_and_the_first_tells_whether_it_is():
    of = space(5, W8A8, W4, FP32)
    doubtful = {(name, chosen) for name, row in of.formats.items() for chosen in row if chosen != of.reference}
    designed = designed_policies(of, edges(of), 8, 5, doubtful)
    assert len({policy.key() for policy in designed}) == 8
    assert len({str(chosen) for chosen in designed[0].formats.values()}) == 1


def test_the_placement_of_a_join_is_priced_and_chosen():
    of, between = joined(), [Edge("layer0", "sum", 64), Edge("layer1", "sum", 64), Edge("sum", "layer2", 64)]
    integer = of.uniform(W8A8)
    floating = Policy(integer.formats, frozenset({"sum"}))
    assert integer.key() != floating.key()
    for saving in (-0.1, 0.1):
        rows = [Observation(integer, 0.6 + saving, 0.002), Observation(floating, 0.6, 0.002)]
        model = fit(of, between, rows)
        faster = floating if saving > 0 else integer
        assert min((integer, floating), key=lambda policy: model.predict(policy)[0]) == faster
        cost = model.cost_model()
        for policy in (integer, floating):
            assert cost.total(policy) == pytest.approx(model.predict(policy)[0], abs=1e-9)
        nothing = {group: dict.fromkeys(row, 0.0) for group, row in of.formats.items()}
        wanted = Problem(of, {**nothing, "layer0": {W8A8: 1.0, FP32: 0.0}}, [Ceiling(cost, 0.9)])
        found = allocate(wanted)
        if found.formats == integer.formats:
            assert found == faster


def test_random_policies_try_joins_in_float():
    found = random_policies(joined(), 8, 0)
    assert len({policy.key() for policy in found}) == len(found)
    assert any(policy.float_joins for policy in found)


def test_designed_policies_tell_more_than_random_ones():
    gains = []
    for seed in range(4):
        of = space(8, W8A8, W4, FP32)
        truth, test = Truth.drawn(of, seed), random_policies(of, 40, 99)
        errors = []
        for chosen in (designed_policies(of, edges(of), 10, seed), random_policies(of, 10, seed)):
            model = fit(of, edges(of), [Observation(policy, truth.ratio(policy), NOISE) for policy in chosen])
            errors.append(np.mean([abs(model.predict(policy)[0] - truth.ratio(policy)) for policy in test]))
        gains.append(errors[0] / errors[1])
    assert np.mean(gains) < 1.0
