"""Price each format of each group by the measured latency of whole engines.

Times of single layers do not add up (a layer turned to integers pays for conversions that vanish when its neighbours turn too), so
nothing but whole engines is measured, and a linear model with a part for every (group, format) and every crossing between integer
and float neighbours is fitted to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from calib.formats import Format
from calib.graph import TracedModel, operator_name
from smpq.costs import CostModel, Transition, is_integer
from smpq.policy import Policy, Space

_PRIOR_PER_FORMAT = 0.35
_PRIOR_DEVIATION = 0.25
_PRIOR_CROSSING = 0.02
_PRIOR_CROSSING_DEVIATION = 0.01
_SMALLEST_NOISE = 0.003
_DRAWS_PER_POLICY = 20
_POINTWISE = {"relu", "add", "hardtanh", "gelu", "silu", "dropout"}


@dataclass(frozen=True)
class Observation:
    """The measured latency of one policy's engine as a ratio to the float engine, and the standard error of the ratio."""

    policy: Policy
    ratio: float
    standard_error: float


@dataclass(frozen=True)
class LatencyModel:
    """A fitted model: ratios to the float engine, with the covariance of its coefficients."""

    space: Space
    columns: tuple[tuple[str, ...], ...]
    coefficients: np.ndarray
    covariance: np.ndarray
    residual: float
    neighbours: tuple[tuple[str, str], ...]

    def predict(self, policy: Policy) -> tuple[float, float]:
        """Return the predicted ratio and its standard error, the scatter of measurements around the model included."""
        row = _row(policy, self.columns)
        mean = 1.0 + float(row @ self.coefficients)
        return mean, math.sqrt(max(float(row @ self.covariance @ row), 0.0) + self.residual**2)

    def cost_model(self, float_latency_ms: float) -> CostModel:
        """Return the model as a cost in milliseconds for the solver."""
        by_column = dict(zip(self.columns, self.coefficients.tolist(), strict=True))
        parts = {
            group.name: {
                chosen: by_column.get(("format", group.name, str(chosen)), 0.0) * float_latency_ms
                for chosen in {*self.space.formats[group.name], self.space.reference}
            }
            for group in self.space.groups
        }
        transitions = tuple(
            Transition(first, second, by_column["crossing", first, second] * float_latency_ms)
            for first, second in self.neighbours
            if ("crossing", first, second) in by_column
        )
        return CostModel("latency", float_latency_ms, parts, float_latency_ms, transitions)


def neighbours(traced: TracedModel, space: Space) -> tuple[tuple[str, str], ...]:
    """Return pairs of groups whose units are joined in the graph by operators that hold no weight."""
    owner = {call: group.name for group in space.groups for unit in group.units for call in unit.calls}
    nearest: dict[str, set[str]] = {}
    pairs: dict[tuple[str, str], None] = {}
    for node in traced.graph.nodes:
        before = {name for operand in node.all_input_nodes for name in nearest.get(operand.name, ())}
        if node.name in owner:
            pairs.update({(other, owner[node.name]): None for other in sorted(before) if other != owner[node.name]})
            nearest[node.name] = {owner[node.name]}
        elif operator_name(node):
            # a residual sum hands on both of its branches, but not for ever: two steps back are enough to meet the next layer
            nearest[node.name] = set(sorted(before)[-4:])
    return tuple(pairs)


def work_shares(space: Space) -> dict[str, float]:
    """Return group -> its expected share of the float engine's time: multiply-accumulates, and weights to be read."""
    work = {group.name: sum(unit.macs + unit.parameters for unit in group.units) for group in space.groups}
    total = sum(work.values())
    return {name: amount / total for name, amount in work.items()}


def fit(space: Space, pairs: Sequence[tuple[str, str]], observations: Sequence[Observation]) -> LatencyModel:
    """Fit the model to whole-engine measurements.

    Bayesian linear regression. Beforehand, a group in format f is expected to change the ratio by its share of the work times an
    effect of f that all groups have in common and that is not known, plus a deviation of its own; crossings are expected to
    cost a little. Coefficients of crossings are kept at zero or above, which the solver relies on.
    """
    shares = work_shares(space)
    columns: list[tuple[str, ...]] = [
        ("format", group.name, str(chosen))
        for group in space.groups
        for chosen in space.formats[group.name]
        if chosen != space.reference
    ]
    mixed = any(is_integer(chosen) for row in space.formats.values() for chosen in row)
    if mixed:
        columns += [("crossing", *pair) for pair in pairs]
    mean, covariance = _prior(space, columns, shares)
    rows = np.array([_row(o.policy, columns) for o in observations])
    measured = np.array([o.ratio - 1.0 for o in observations])
    noise = np.array([max(o.standard_error, _SMALLEST_NOISE) for o in observations])
    lower = np.array([0.0 if column[0] == "crossing" else -np.inf for column in columns])
    coefficients, posterior = _posterior(rows, measured, noise, mean, covariance, lower)
    residuals = measured - rows @ coefficients
    # what the fit leaves over, with the degrees of freedom it used; never below the noise of a measurement
    used = float(np.trace(rows @ posterior @ rows.T / noise[:, None] ** 2))
    residual = math.sqrt(float(residuals @ residuals) / max(len(observations) - used, 1.0))
    return LatencyModel(space, tuple(columns), coefficients, posterior, max(residual, _SMALLEST_NOISE), tuple(pairs))


def designed_policies(space: Space, count: int, seed: int) -> list[Policy]:
    """Return policies whose measurements tell the terms apart: every uniform format, then random ones, balanced over formats.

    They are all different, and the float engine, whose ratio is known to be 1, is not among them; in a small space there may be
    fewer than `count`.
    """
    generator = np.random.default_rng(seed)
    formats = list(dict.fromkeys(chosen for row in space.formats.values() for chosen in row))
    uniform = [space.uniform(chosen) for chosen in formats]
    policies = {policy.key(): policy for policy in uniform}
    reference = space.uniform(space.reference).key()
    for _ in range(_DRAWS_PER_POLICY * count):
        if len(policies.keys() - {reference}) >= count:
            break
        # a random fraction of the network in one format, the rest in another: contiguous runs and scattered layers both occur
        flip = generator.uniform(0.05, 0.6)
        first, picks = int(generator.integers(len(formats))), {}
        for group in space.groups:
            if generator.random() < flip:
                first = int(generator.integers(len(formats)))
            allowed = space.formats[group.name]
            picks[group.name] = formats[first] if formats[first] in allowed else allowed[int(generator.integers(len(allowed)))]
        policies.setdefault(Policy(picks).key(), Policy(picks))
    policies.pop(reference, None)
    return list(policies.values())


def _row(policy: Policy, columns: Sequence[tuple[str, ...]]) -> np.ndarray:
    row = np.zeros(len(columns))
    for index, (kind, *what) in enumerate(columns):
        if kind == "format":
            row[index] = float(str(policy[what[0]]) == what[1])
        else:
            row[index] = float(is_integer(policy[what[0]]) != is_integer(policy[what[1]]))
    return row


def _prior(space: Space, columns: Sequence[tuple[str, ...]], shares: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    mean = np.zeros(len(columns))
    size = len(columns)
    covariance = np.zeros((size, size))
    formats = {str(chosen): chosen for row in space.formats.values() for chosen in row}
    average = 1.0 / len(space.groups)
    for i, (kind, *what) in enumerate(columns):
        if kind == "format":
            share = shares[what[0]]
            mean[i] = _expected_effect(formats[what[1]]) * share
            covariance[i, i] += (_PRIOR_DEVIATION * (share + 0.2 * average)) ** 2
        else:
            mean[i] = _PRIOR_CROSSING
            covariance[i, i] += _PRIOR_CROSSING_DEVIATION**2
        for j, (other_kind, *other) in enumerate(columns):
            if kind == other_kind == "format" and what[1] == other[1]:
                covariance[i, j] += _PRIOR_PER_FORMAT**2 * shares[what[0]] * shares[other[0]]
            elif kind == other_kind == "crossing":
                covariance[i, j] += _PRIOR_CROSSING**2
    return mean, covariance


def _expected_effect(chosen: Format) -> float:
    """Share of a layer's float time that a format is expected to save or cost before anything is measured."""
    return -0.5 if chosen.quantizes_activation or chosen.weight_block else 0.0


def _posterior(
    rows: np.ndarray, measured: np.ndarray, noise: np.ndarray, mean: np.ndarray, covariance: np.ndarray, lower: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    precision = np.linalg.inv(covariance + np.eye(len(mean)) * 1e-10)
    weighted = rows / noise[:, None]
    posterior = np.linalg.inv(precision + weighted.T @ weighted)
    # the same objective as least squares, so that bounds can be put on it
    root = np.linalg.cholesky(precision).T
    system = np.vstack([weighted, root])
    target = np.concatenate([measured / noise, root @ mean])
    solution = lsq_linear(system, target, bounds=(lower, np.full(len(mean), np.inf)))
    return np.asarray(solution.x), posterior
