"""Costs at the lower end of each policy's own interval."""

import math

import numpy as np
import pytest

from calib.formats.format import FP32
from deploy.latency.hopeful import hopeful_cost, likelihood
from deploy.latency.model import fit
from smpq.problem.policy import Join
from smpq.solve.allocate import Ceiling, Problem, allocate
from tests.deploy.latency.test_loop import Bench
from tests.deploy.latency.test_model import edges, observed
from tests.deploy.synthetic import W4, W8A8, Truth, policies, space

ERRORS = 1.5


def fitted(seed, count=6, joins=()):
    of = space(5, W8A8, W4, FP32)
    of = of if not joins else type(of)(of.groups, of.formats, of.reference, joins)
    return of, fit(of, edges(of), observed(of, Truth.drawn(of, seed), count, seed, 0.01))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("joins", [(), (Join("sum", ("layer0", "layer1"), ("layer2",)),)])
def test_no_cost_is_below_the_end_of_the_interval_and_one_policy_is_at_it(seed, joins):
    of, model = fitted(seed, joins=joins)
    every = list(policies(of))
    around = every[np.random.default_rng(seed).integers(len(every))]
    cost = model.tangent(around, ERRORS)
    room = [cost.total(policy) - (mean - ERRORS * error) for policy in every for mean, error in [model.predict(policy)]]
    assert min(room) > -1e-9
    clamped = any(transition.cost == 0 for transition in cost.transitions)
    assert clamped or cost.total(around) == pytest.approx(model.predict(around)[0] - ERRORS * model.predict(around)[1])
    assert model.tangent(around, 0.0).total(around) == pytest.approx(model.predict(around)[0])


def test_what_is_uncertain_is_found_where_it_is_worth_most():
    """The best policy of all that are within the limit at the end of their own interval, or one that is nearly it."""
    lost = []
    for seed in range(6):
        of, model = fitted(seed)
        generator = np.random.default_rng(seed)
        values = {
            name: {f: -generator.uniform(0.2, 1.0) * (f != FP32) for f in row} for name, row in of.formats.items()
        }
        limit = 0.7
        cost = hopeful_cost(model, limit, ERRORS, Problem(of, values))
        found = allocate(Problem(of, values, [Ceiling(cost, limit)]))

        def worth(policy, values=values):
            return sum(values[name][chosen] for name, chosen in policy.formats.items())

        within = [p for p in policies(of) for mean, error in [model.predict(p)] if mean - ERRORS * error <= limit]
        sure = [p for p in policies(of) if model.predict(p)[0] <= limit]
        assert found in within
        assert cost.total(found) == pytest.approx(np.dot(model.predict(found), (1, -ERRORS)))
        lost.append((max(map(worth, within)) - worth(found), max(map(worth, within)) - max(map(worth, sure))))
    gaps, without = np.array(lost).T
    assert gaps.sum() < 0.5 * without.sum()


def test_likelihood_by_hand():
    of, model = fitted(0)
    policy = of.uniform(W4)
    mean, error = model.predict(policy)
    assert likelihood(model, policy, mean) == pytest.approx(0.5)
    assert likelihood(model, policy, mean + error) == pytest.approx((1 + math.erf(1 / math.sqrt(2))) / 2)


@pytest.mark.parametrize(("seed", "limit"), [(0, 0.6), (1, 0.75), (2, 0.6), (2, 0.75)])
def test_no_engine_is_measured_that_is_predicted_to_miss_by_more_than_its_own_error_allows(seed, limit):
    proposed = [
        step.proposal
        for step in Bench(seed, noise=0.01).run(limit, measurements=14).steps
        if step.proposal.label != "experiment"
    ]
    assert proposed
    for each in proposed:
        low, high = each.interval
        assert each.predicted - ERRORS * (high - low) / 2 / 1.96 <= limit + 1e-9


def test_a_search_asks_for_few_values_once_single_changes_are_known():
    bench = Bench(3, space(9, W8A8, W4, FP32))
    told, asked, value = [0], set(), bench.value

    def counted(policy):
        asked.add(policy.key())
        return value(policy)

    def measured(policy):
        told.append(len(asked))
        return Bench.measure(bench, policy)

    bench.value, bench.measure = counted, measured
    outcome = bench.run(0.75, measurements=9)
    first = next(number for number, step in enumerate(outcome.steps) if step.proposal.label == "proposal")
    spent = np.diff(told)[first:]
    assert spent[0] > 20, "the first one measures single changes, and exchanges"
    assert len(spent) > 2
    assert min(spent[1:]) <= 2
