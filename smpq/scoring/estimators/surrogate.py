"""A Gaussian process over coalitions whose Shapley values are known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from smpq.scoring.estimators.base import Floats

_MOST_TO_FIT = 300
_ITERATIONS = 40
_JITTER = 1e-10
_SHRINKAGE = 0.5
"""Standard deviation of the players' log widths around their mean, a priori: few values do not tell the players
apart.
"""
_START = (math.log(1.5), math.log(1.0), math.log(1.0), math.log(1e-3))
_BOUNDS = ((-7.0, 1.0), (-7.0, 6.0), (-12.0, 6.0), (-14.0, 0.0))


@dataclass(frozen=True)
class PairKernel:
    """The covariance of half differences y(x) = (V(S) - V(complement of S)) / 2, with x_i = 1 for members and -1 for
    the others.

    k(x, z) = linear * x'z + products * sinh(sum_i width_i x_i z_i) / sinh(sum_i width_i). With t = tanh(width) the
    second term is, but for a factor, the odd part of prod_i (1 + t_i x_i z_i): a sum over all sets of 1, 3, 5, ...
    players of the product of their x_i t_i z_i. Sets of even size cancel in y, and in Shapley values too. `noise`
    stands for what the kernel cannot express.
    """

    widths: Floats
    linear: float
    products: float
    noise: float

    def __call__(self, left: Floats, right: Floats) -> Floats:
        """Return `[a, b]` of signs `[a, n]` and `[b, n]`, without the noise."""
        odd, _ = _hyperbolic((left * self.widths) @ right.T, float(self.widths.sum()))
        return np.asarray(self.linear * (left @ right.T) + self.products * odd, float)

    def shapley_values(self, signs: Floats) -> Floats:
        """Return `[a, n]`: the Shapley values of the game whose half differences are k(., z), for each z of `[a, n]`.

        Of a product of m players' signs, m odd, each gets 2 / m; and the integral over u from -1 to 1 of t_i z_i
        prod_(j != i) (1 + t_j z_j u) sums that over all sets. Gauss-Legendre quadrature is exact for a polynomial.
        """
        players = signs.shape[1]
        slopes = np.tanh(self.widths)
        total = float(self.widths.sum())
        # the log of prod(cosh width) / sinh(sum of widths), by which the product exceeds the kernel's term
        log_factor = float(np.log(np.cosh(self.widths)).sum()) - total - math.log1p(-math.exp(-2 * total)) + math.log(2)
        result = np.zeros(signs.shape)
        for node, weight in zip(*np.polynomial.legendre.leggauss((players + 1) // 2), strict=True):
            logs = np.log1p(slopes * signs * node)
            result += weight * slopes * signs * np.exp(logs.sum(axis=1, keepdims=True) - logs + log_factor)
        return 2 * self.linear * signs + self.products * result


def fit_kernel(signs: Floats, targets: Floats, generator: np.random.Generator) -> PairKernel:
    """Return the kernel of greatest marginal likelihood of `targets [a]`, scaled to mean square 1, at `signs [a, n]`.

    At most 300 of them are used. A priori the log widths scatter by 0.5 around their mean (ours).
    """
    from scipy import optimize

    if len(signs) > _MOST_TO_FIT:
        chosen = generator.choice(len(signs), _MOST_TO_FIT, replace=False)
        signs, targets = signs[chosen], targets[chosen]
    players = signs.shape[1]
    width, linear, products, noise = _START
    start = np.array([width - math.log(players)] * players + [linear - math.log(players), products, noise])
    bounds = [_BOUNDS[0]] * players + list(_BOUNDS[1:])
    options = {"maxiter": _ITERATIONS}
    found = optimize.minimize(
        _surprise, start, (signs, targets), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    linear, products, noise = np.exp(found.x[players:]).tolist()
    return PairKernel(np.exp(found.x[:players]), linear, products, noise)


@dataclass(frozen=True)
class Surrogate:
    """The posterior mean of a game, given half differences.

    `shapley_values [n]`: those of the mean. `residuals [a]`: what it misses of the given values. `left_out [a]`: what
    it would miss of each had that one not been given (Sundararajan and Keerthi 2001, section 3); all in the units of
    the targets.
    """

    shapley_values: Floats
    residuals: Floats
    left_out: Floats


def fit_surrogate(signs: Floats, targets: Floats, most: int, generator: np.random.Generator) -> Surrogate:
    """Fit a surrogate to half differences `targets [a]` at `signs [a, n]`.

    Of more than `most`, the first one and a random part of the others are used; what is not used is its own test.
    """
    from scipy import linalg

    scale = math.sqrt(float((targets**2).mean())) or 1.0
    scaled = targets / scale
    used = np.arange(len(signs))
    if len(signs) > most:
        used = np.append(0, 1 + generator.choice(len(signs) - 1, most - 1, replace=False))
    kernel = fit_kernel(signs[used], scaled[used], generator)
    covariance = kernel(signs[used], signs[used])
    covariance[np.diag_indices(len(used))] += kernel.noise + _JITTER
    inverse = linalg.cho_solve(linalg.cho_factor(covariance, lower=True), np.eye(len(used)))
    weights = inverse @ scaled[used]
    residuals = scaled - kernel(signs, signs[used]) @ weights
    left_out = residuals.copy()
    left_out[used] = weights / inverse.diagonal()
    return Surrogate(scale * (weights @ kernel.shapley_values(signs[used])), scale * residuals, scale * left_out)


def _surprise(parameters: Floats, signs: Floats, targets: Floats) -> tuple[float, Floats]:
    """Return minus the log posterior of the logarithms of the kernel's parameters, but for a constant, and its
    gradient.
    """
    from scipy import linalg

    players = signs.shape[1]
    widths = np.exp(parameters[:players])
    linear, products, noise = np.exp(parameters[players:])
    total = float(widths.sum())
    odd, even = _hyperbolic((signs * widths) @ signs.T, total)
    dot = signs @ signs.T
    covariance = linear * dot + products * odd + (noise + _JITTER) * np.eye(len(signs))
    factor = linalg.cholesky(covariance, lower=True)
    inverse = linalg.cho_solve((factor, True), np.eye(len(signs)))
    weights = inverse @ targets
    slope = inverse - np.outer(weights, weights)
    apart = parameters[:players] - parameters[:players].mean()
    surprise = targets @ weights / 2 + np.log(factor.diagonal()).sum() + (apart**2).sum() / (2 * _SHRINKAGE**2)
    by_odd = products * (slope * odd).sum()
    by_width = products * (((slope * even) @ signs) * signs).sum(axis=0) - by_odd / math.tanh(total)
    rest = [linear * (slope * dot).sum(), by_odd, noise * np.trace(slope)]
    gradient = np.concatenate([widths * by_width, rest]) / 2
    gradient[:players] += apart / _SHRINKAGE**2
    return float(surprise), gradient


def _hyperbolic(exponents: Floats, largest: float) -> tuple[Floats, Floats]:
    """Return sinh and cosh of `exponents`, both divided by sinh(largest), without overflow; no magnitude exceeds
    `largest`.
    """
    up, down = np.exp(exponents - largest), np.exp(-exponents - largest)
    scale = 1 - math.exp(-2 * largest)
    return (up - down) / scale, (up + down) / scale
