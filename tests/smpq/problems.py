"""Small spaces and costs made of nothing but numbers, and a small residual network."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, Format
from calib.formats.quantizers import Scheme
from calib.network.graph import TracedModel
from calib.network.units import Unit, find_units
from calib.task import Batch
from smpq.problem.costs import CostModel, Transition
from smpq.problem.policy import Group, Policy, Space
from smpq.solve.allocate import Problem, Values

W8A8, W4A16, W2A8 = (Format.from_text(text) for text in ("w8a8", "w4a16", "w2a8"))


def unit(path: str, parameters: int = 64) -> Unit:
    return Unit(
        path,
        "linear",
        f"p_{path}",
        None,
        (8, parameters // 8),
        parameters,
        parameters,
        (f"call_{path}",),
        (f"in_{path}",),
    )


def space_of(
    count: int, formats: Sequence[Format] = (W8A8, W4A16, FP32), parameters: Sequence[int] | None = None
) -> Space:
    sizes = parameters or [64] * count
    groups = tuple(Group(f"g{i}", (unit(f"g{i}", size),)) for i, size in zip(range(count), sizes, strict=True))
    return Space(groups, {group.name: tuple(formats) for group in groups}, FP32)


def policies(space: Space) -> Iterator[Policy]:
    names = [group.name for group in space.groups]
    for formats in itertools.product(*(space.formats[name] for name in names)):
        yield Policy(dict(zip(names, formats, strict=True)))


def random_values(space: Space, generator: np.random.Generator, scale: float = 1.0) -> Values:
    return {name: {f: float(generator.normal() * scale) for f in formats} for name, formats in space.formats.items()}


def random_cost(
    space: Space, generator: np.random.Generator, name: str = "latency", *, transitions: bool = False
) -> CostModel:
    parts = {group: {f: float(generator.uniform(0.1, 2)) for f in formats} for group, formats in space.formats.items()}
    names = list(space.formats)
    pairs = itertools.pairwise(names) if transitions else ()
    crossed = tuple(Transition(first, second, float(generator.uniform(-0.1, 1))) for first, second in pairs)
    fixed = float(generator.uniform(0, 0.5))
    return CostModel(name, fixed, parts, fixed + sum(row[FP32] for row in parts.values()), crossed)


def total(values: Values, policy: Policy) -> float:
    return sum(values[name][chosen] for name, chosen in policy.formats.items())


def cost_by_hand(model: CostModel, policy: Policy) -> float:
    """As the solver sees it: a transition that gains is worth nothing."""
    cost = model.fixed + sum(model.parts[name][chosen] for name, chosen in policy.formats.items())
    for t in model.transitions:
        if (policy[t.first].activation_bits <= 8) != (policy[t.second].activation_bits <= 8):
            cost += max(t.cost, 0.0)
    return cost


def within(problem: Problem, policy: Policy) -> bool:
    without = {excluded.key() for excluded in problem.excluded}
    centre = problem.near.centre if problem.near else policy
    changes = sum(policy[name] != centre[name] for name in policy.formats)
    return (
        policy.key() not in without
        and all(cost_by_hand(c.model, policy) <= c.limit for c in problem.ceilings)
        and (problem.near is None or changes <= problem.near.changes)
    )


class Additive:
    """A game whose value is a sum, with a count of the policies that were asked for."""

    def __init__(self, values: Values, constant: float = 0.0) -> None:
        self.values = values
        self.constant = constant
        self.asked: list[str] = []

    def __call__(self, policy: Policy) -> float:
        self.asked.append(policy.key())
        return self.constant + total(self.values, policy)

    def many(self, policies: Iterable[Policy]) -> list[float]:
        return [self(policy) for policy in policies]


class Residual(nn.Module):
    """Two blocks: one whose branches are both convolutions, one with an identity; a pool and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.skip = nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(4, 4, 3, padding=1)
        self.d = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = F.relu(self.b(F.relu(self.a(x))) + self.skip(x))
        y = F.relu(self.c(x))
        x = F.relu(self.d(y) + x)
        return self.head(x.mean((2, 3)))


class Traced:
    """A network with its units by path and its calibration."""

    def __init__(self, model: nn.Module, x: Tensor, scheme: Scheme = "affine") -> None:
        self.x = x
        self.traced = TracedModel(model.eval(), (x[:2],))
        self.units, _ = find_units(self.traced)
        self.by_path = {unit.path: unit for unit in self.units}
        settings = CalibrationSettings("minmax", "nearest", scheme)
        self.calibration = Calibration(self.traced, self.units, [Batch((x,), None)], settings)

    def formats(self, default: str, **others: str) -> Mapping[str, Format]:
        return {unit.path: Format.from_text(others.get(unit.path, default)) for unit in self.units}

    def after(self, tensor: str) -> str:
        """The only consumer of a tensor."""
        (user,) = self.traced.consumers(tensor)
        return str(user.name)


def residual(scheme: Scheme = "affine") -> Traced:
    torch.manual_seed(0)
    return Traced(Residual(), torch.randn(8, 3, 8, 8), scheme)
