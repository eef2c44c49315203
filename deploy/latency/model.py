"""Price each format of each group by the measured latency of whole engines.

Times of single layers do not add up (a layer turned to integers pays for conversions that vanish when its neighbours
turn too), so nothing but whole engines is measured, and a linear model with a part for every (group, format), every
integer join and every tensor that has to be converted is fitted to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.latency.observed import Observation
from deploy.latency.terms import JOINS, Prior, Term, prior_of, row_of, terms_of
from smpq.problem.costs import CostModel, JoinCost, Transition
from smpq.problem.joins import Edge
from smpq.problem.policy import Policy, Space

Matrix = np.ndarray

STRENGTHS = {
    "integers": 0.4, "format": 0.2, "operator": 0.2, "call": 0.1, "shape": 0.2, "shape and format": 0.2, "group": 0.1,
    "own": 0.1, "conversions": 0.3, "place": 0.3, "place and size": 0.3, "edge": 0.3, "joins": 0.2, "join": 0.2,
}  # fmt: skip
"""Usual standard deviation of each part of the prior, in shares of the float engine's time; a network's own are learned
from these.
"""
_SCATTER = 0.01
_SPREAD = 0.7
"""Standard deviation of the logarithm of a strength, from network to network."""
_SMALLEST_NOISE = 0.003


@dataclass(frozen=True)
class LatencyModel:
    """A fitted model: ratios to the float engine, with the covariance of its coefficients.

    `residual` is the scatter of whole engines around a linear model, a standard deviation.
    """

    space: Space
    terms: tuple[Term, ...]
    coefficients: Matrix
    covariance: Matrix
    residual: float

    def predict(self, policy: Policy) -> tuple[float, float]:
        """Return the predicted ratio and its standard error, the scatter of measurements around the model included."""
        row = row_of(policy, self.space, self.terms)
        mean = 1.0 + float(row @ self.coefficients)
        return mean, math.sqrt(max(float(row @ self.covariance @ row), 0.0) + self.residual**2)

    def cost_model(self) -> CostModel:
        """Return the ratio to the float engine as a cost for the solver."""
        return self._cost_model(self.coefficients, 1.0)

    def tangent(self, policy: Policy, errors: float) -> CostModel:
        """Return the ratio to the float engine as a linear cost that is so many standard errors below the prediction at
        `policy`, and at no policy further below than so many of its own.

        The standard error is a norm, hence convex in what a policy is made of: its tangent at `policy` is nowhere above
        it. Costs of conversions stay at zero or above, at the price of exactness.
        """
        row = row_of(policy, self.space, self.terms)
        spread = self.covariance @ row
        error = math.sqrt(max(float(row @ spread), 0.0) + self.residual**2)
        lowered = self.coefficients - errors * spread / error
        conversions = np.array([term.kind == "edge" for term in self.terms], bool)
        lowered = np.where(conversions, np.maximum(lowered, 0.0), lowered)
        return self._cost_model(lowered, 1.0 - errors * self.residual**2 / error)

    def _cost_model(self, coefficients: Matrix, fixed: float) -> CostModel:
        found = dict(zip(self.terms, coefficients.tolist(), strict=True))
        parts = {
            group.name: {
                chosen: found.get(Term("format", group.name, str(chosen)), 0.0)
                for chosen in self.space.priced(group.name)
            }
            for group in self.space.groups
        }
        transitions = tuple(
            Transition(term.first, term.second, value) for term, value in found.items() if term.kind == "edge"
        )
        joins = tuple(
            JoinCost(join, *(found.get(Term(kind, join.name), 0.0) for kind in JOINS)) for join in self.space.joins
        )
        return CostModel("latency", fixed, parts, 1.0, transitions, joins)


def fit(space: Space, edges: Sequence[Edge], known: Sequence[Observation]) -> LatencyModel:
    """Fit the model to measured engines, and to the float engine, whose ratio is 1.

    Bayesian linear regression. The prior's parts (`deploy.latency.terms.prior_of`) have strengths that differ from
    network to network: those with the highest marginal likelihood are taken (empirical Bayes), and the scatter with
    them. Costs of conversions are kept at zero or above, which the solver relies on. Ours.
    """
    observations = [Observation(space.uniform(space.reference), 1.0, 0.0), *known]
    terms = terms_of(space, edges)
    prior = prior_of(space, edges, terms)
    rows = np.array([row_of(o.policy, space, terms) for o in observations])
    measured = np.array([o.ratio - 1.0 for o in observations])
    noise = np.array([max(o.standard_error, _SMALLEST_NOISE) for o in observations])
    strengths, residual = _strengths(rows, measured, noise, prior)
    covariance = covariance_of(prior, strengths)
    conversions = np.array([term.kind == "edge" for term in terms], bool)
    coefficients, posterior = _posterior(rows, measured, np.hypot(noise, residual), prior.mean, covariance, conversions)
    return LatencyModel(space, terms, coefficients, posterior, max(residual, _SMALLEST_NOISE))


def covariance_of(prior: Prior, strengths: Mapping[str, float]) -> Matrix:
    """Return the covariance `[terms, terms]` that parts of these strengths add up to."""
    return np.asarray(np.sum([strengths[name] ** 2 * part for name, part in prior.parts.items()], axis=0))


def _strengths(rows: Matrix, measured: Matrix, noise: Matrix, prior: Prior) -> tuple[dict[str, float], float]:
    """Return the strengths and the scatter that explain the measurements best, given what is usual."""
    from scipy.optimize import minimize

    names = list(prior.parts)
    usual = np.log([*(STRENGTHS[name] for name in names), _SCATTER])
    parts = np.array([*(rows @ prior.parts[name] @ rows.T for name in names), np.eye(len(rows))])
    surprise = measured - rows @ prior.mean

    def unlikeliness(logs: Matrix) -> tuple[float, Matrix]:
        """Return minus the logarithm of the likelihood, up to a constant, and its gradient."""
        squares, unusual = np.exp(2 * logs), (logs - usual) / _SPREAD
        total = np.tensordot(squares, parts, 1) + np.diag(noise**2)
        root = np.linalg.cholesky(total)
        inverse = np.linalg.inv(total)
        explained = inverse @ surprise
        value = 0.5 * surprise @ explained + np.log(np.diag(root)).sum() + 0.5 * unusual @ unusual
        slopes = np.tensordot(parts, inverse - np.outer(explained, explained), 2)
        return float(value), squares * slopes + unusual / _SPREAD

    found = np.exp(minimize(unlikeliness, usual, jac=True, method="L-BFGS-B").x)
    return dict(zip(names, found.tolist(), strict=False)), float(found[-1])


def _posterior(
    rows: Matrix, measured: Matrix, noise: Matrix, mean: Matrix, covariance: Matrix, bounded: Matrix
) -> tuple[Matrix, Matrix]:
    from scipy.optimize import lsq_linear

    precision = np.linalg.inv(covariance + np.eye(len(mean)) * 1e-10)
    weighted = rows / noise[:, None]
    posterior = np.linalg.inv(precision + weighted.T @ weighted)
    # the same objective as least squares, so that bounds can be put on it
    root = np.linalg.cholesky(precision).T
    system = np.vstack([weighted, root])
    target = np.concatenate([measured / noise, root @ mean])
    solution = lsq_linear(system, target, bounds=(np.where(bounded, 0.0, -np.inf), np.full(len(mean), np.inf)))
    return np.asarray(solution.x), posterior
