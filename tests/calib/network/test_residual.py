"""Which layer computes an add and which operand is the skip, on one small network for each case."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.network.graph import TracedModel
from calib.network.nodes import operator_name
from calib.network.residual import residual_adds
from calib.network.units import find_units


class Layers(nn.Module):
    """Layers to be called by the function under test."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.one = nn.Conv2d(4, 1, 1)
        self.p, self.q = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.constant = nn.Parameter(torch.ones(1, 4, 1, 1))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def chain(m: Layers, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) + m.c(x)


def behind_a_read_skip(m: Layers, x: Tensor) -> Tensor:
    y = torch.sin(x)
    return m.b(F.relu(m.a(y))) + y


def two_blocks(m: Layers, x: Tensor) -> Tensor:
    y = F.relu(m.b(m.a(x)) + torch.sin(x))
    return m.c(F.avg_pool2d(y, 1)) + y


CASES = {
    "the shorter branch is the skip": (lambda m, x: m.b(F.relu(m.a(x))) + m.c(x), [("b", "c", (), "c")]),
    "in any order": (lambda m, x: m.c(x) + m.b(F.relu(m.a(x))), [("b", "c", (), "c")]),
    "of equal branches the first": (lambda m, x: m.b(x) + m.c(x), [("c", "b", (), "b")]),
    "a linear bottleneck": (lambda m, x: (y := m.a(x)) + m.c(F.relu6(m.b(y))), [("c", "a", ("b",), "a")]),
    "an activation on either side": (
        lambda m, x: (y := F.silu(m.a(x))) + F.silu(m.b(F.avg_pool2d(y, 1))),
        [("b", "silu", (), "a")],
    ),
    "an activation written as a product": (
        lambda m, x: (y := (z := m.a(x)) * torch.sigmoid(z)) + m.b(F.avg_pool2d(y, 1)),
        [("b", "mul", (), "a")],
    ),
    "a skip that no convolution makes": (behind_a_read_skip, [("b", "sin", ("a",), None)]),
    "a skip made with an add that has none of its own": (two_blocks, [("c", "relu", (), "b")]),
    "each convolution computes one add": (chain, [("b", "a", (), "a"), ("c", "add", (), "b")]),
    "a skip that is moved": (
        lambda m, x: m.b(y := F.relu(m.a(x))) + F.pad(y[:, 1:], (0, 0, 0, 0, 0, 1)),
        [("b", "relu", ("b",), "a")],
    ),
    "a network input that a unit reads": (lambda m, x: m.a(x) + x, [("a", "input", ("a",), None)]),
    "a network input that none reads": (lambda m, x: m.a(torch.sin(x)) + x, []),
    "a constant": (lambda m, x: m.a(x) + 1.0, []),
    "a parameter": (lambda m, x: m.a(x) + m.constant.expand(1, 4, 4, 4), []),
    "a sum with a parameter is handed on": (
        lambda m, x: m.b(x) + (m.a(x) + m.constant),
        [("a", "b", (), "b")],
    ),
    "a skip that needs the convolution first": (lambda m, x: (y := m.a(x)) + F.relu(y), []),
    "a gate of it": (lambda m, x: (y := m.a(x)) + y * torch.sigmoid(m.one(y)), []),
    "twice the same": (lambda m, x: (y := m.a(x)) + y, []),
    "a scaled skip": (lambda m, x: torch.add(m.b(x), m.a(x), alpha=2), []),
    "a skip that is broadcast": (lambda m, x: m.b(x) + m.one(x), []),
    "no layer": (lambda m, x: torch.sin(x) + torch.cos(x), []),
    "a linear layer, the skip read": (
        lambda m, x: (y := torch.sin(x)) + m.q(F.relu(m.p(y))),
        [("q", "sin", ("p",), None)],
    ),
    "a linear layer, the skip not read": (lambda m, x: (y := torch.sin(x)) + m.q(F.relu(m.p(m.norm(y)))), []),
    "two linear layers": (lambda m, x: m.p(x) + m.q(x), []),
}


class Every(nn.Module):
    """All cases side by side, so that one trace does for them; each has an input and layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cases = nn.ModuleList(Layers(forward) for forward, _ in CASES.values())

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [case(x) for case, x in zip(self.cases, inputs, strict=True)]


@pytest.fixture(scope="module")
def found() -> dict[str, list[tuple[str, str, tuple[str, ...], str | None]]]:
    """(Layer, what makes the tensor whose grid the skip has, its readers, the convolution that makes the skip) of each
    case's adds.
    """
    traced = TracedModel(Every().eval(), [torch.randn(2, 4, 4, 4) for _ in CASES], free=False)
    units, _ = find_units(traced)
    path = {call: unit.path for unit in units for call in unit.calls}
    adds: dict[str, list[tuple[str, str, tuple[str, ...], str | None]]] = {case: [] for case in CASES}
    for add in residual_adds(traced, units):
        _, number, layer = path[add.layer].split(".")
        node = traced.nodes[add.grid]
        grid = path[add.grid].rpartition(".")[2] if add.grid in path else operator_name(node) or "input"
        readers = tuple(path[call].rpartition(".")[2] for call in add.readers)
        writer = path[add.writer].rpartition(".")[2] if add.writer is not None else None
        adds[list(CASES)[int(number)]].append((layer, grid, readers, writer))
    return adds


@pytest.mark.parametrize("case", CASES)
def test_layer_and_skip(case, found):
    assert found[case] == CASES[case][1]
