import numpy as np
import pytest

from calib.formats import FP32
from deploy.latency import Observation, designed_policies, fit, neighbours, work_shares
from smpq.groups import find_groups, space_from_formats
from tests.deploy import networks
from tests.deploy.synthetic import W4, W8A8, Truth, chain, policies, space

NOISE = 0.004


def observed(of, truth, count, seed, noise=NOISE):
    """What measuring designed policies would give."""
    generator = np.random.default_rng(seed)
    return [
        Observation(policy, truth.ratio(policy) + noise * generator.standard_normal(), max(noise, 1e-4))
        for policy in designed_policies(of, count, seed)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_few_engines_predict_all_others(seed):
    of = space(6, W8A8, W4, FP32)
    truth = Truth.drawn(of, seed)
    model = fit(of, chain(of), observed(of, truth, 24, seed))
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
        model = fit(of, chain(of), observed(of, truth, 12, seed))
        for policy in policies(of):
            mean, error = model.predict(policy)
            assert error >= 0.003, "never surer than a measurement"
            covered.append(abs(mean - truth.ratio(policy)) <= 1.96 * error)
    assert np.mean(covered) > 0.85


def test_more_engines_make_surer():
    of = space(6, W8A8, FP32)
    truth = Truth.drawn(of, 0)
    few, many = (fit(of, chain(of), observed(of, truth, count, 0)) for count in (4, 40))
    rows = list(policies(of))
    assert sum(many.predict(p)[1] for p in rows) < sum(few.predict(p)[1] for p in rows)


@pytest.mark.parametrize("crossing", [0.03, 0.0, -0.03])
def test_a_crossing_never_pays(crossing):
    of = space(5, W8A8, FP32)
    model = fit(of, chain(of), observed(of, Truth.drawn(of, 1, crossing), 16, 1))
    found = {column[1:]: value for column, value in zip(model.columns, model.coefficients, strict=True) if column[0] == "crossing"}
    assert set(found) == set(chain(of))
    assert min(found.values()) >= 0.0
    assert all(transition.cost >= 0.0 for transition in model.cost_model(1.0).transitions)
    if crossing > 0:
        assert np.mean(list(found.values())) == pytest.approx(crossing, abs=0.015)


def test_the_solver_sees_the_same_numbers():
    of = space(4, W8A8, W4, FP32)
    model = fit(of, chain(of), observed(of, Truth.drawn(of, 2), 16, 2))
    cost, in_ms = model.cost_model(1.0), model.cost_model(2.5)
    assert in_ms.float_total == 2.5
    for policy in policies(of):
        assert cost.total(policy) == pytest.approx(model.predict(policy)[0], abs=1e-9)
        assert in_ms.total(policy) == pytest.approx(2.5 * cost.total(policy), abs=1e-9)
    assert cost.total(of.uniform(FP32)) == pytest.approx(1.0)


def test_without_integer_formats_nothing_crosses():
    of = space(4, W4, FP32)
    model = fit(of, chain(of), observed(of, Truth.drawn(of, 3), 8, 3))
    assert {column[0] for column in model.columns} == {"format"}


def test_before_anything_is_measured_larger_layers_are_expected_to_save_more():
    of = space(3, W8A8, FP32)
    model = fit(of, chain(of), [Observation(of.uniform(FP32), 1.0, 0.0)])
    parts = model.cost_model(1.0).parts
    assert parts["layer2"][W8A8] < parts["layer1"][W8A8] < parts["layer0"][W8A8] < 0
    shares = work_shares(of)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["layer2"] == pytest.approx(3 * shares["layer0"])


def test_designed_policies_are_different_allowed_and_reproducible():
    of = space(8, W8A8, W4, FP32)
    designed = designed_policies(of, 14, 5)
    keys = [policy.key() for policy in designed]
    assert len(set(keys)) == len(keys)
    assert 10 <= len(keys) <= 14
    assert {of.uniform(W8A8).key(), of.uniform(W4).key()} <= set(keys)
    assert keys == [policy.key() for policy in designed_policies(of, 14, 5)]
    assert keys != [policy.key() for policy in designed_policies(of, 14, 6)]
    for policy in designed:
        assert all(policy[group.name] in of.formats[group.name] for group in of.groups)


def test_neighbours_are_joined_by_operators_without_weights():
    exported = networks.mlp()
    of, _ = space_from_formats(find_groups(exported.traced, exported.units), [W8A8, FP32], FP32, lambda unit, chosen: None)
    assert neighbours(exported.traced, of) == (("1", "3"), ("3", "5"))


def test_both_branches_of_a_residual_sum_are_neighbours_of_what_follows():
    exported = networks.residual()
    of, _ = space_from_formats(find_groups(exported.traced, exported.units), [W8A8, FP32], FP32, lambda unit, chosen: None)
    pairs = set(neighbours(exported.traced, of))
    name = {unit.path: group.name for group in of.groups for unit in group.units}
    assert (name["stem"], name["a"]) in pairs
    assert (name["b"], name["depthwise"]) in pairs
    assert (name["stem"], name["depthwise"]) in pairs, "the skip hands it on"
    assert all(first != second for first, second in pairs)
