"""Scaling and shifting the channels behind a LayerNorm changes nothing that the network gives, and is refused where it
would.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from calib.network.graph import TracedModel
from calib.network.rescaling import rescalable_norms, rescaled
from calib.network.units import find_units

CHANNELS = 6


class Network(nn.Module):
    """Norms and layers on tokens, called by the function under test."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.plain = nn.LayerNorm(CHANNELS, elementwise_affine=False)
        self.no_offset = nn.LayerNorm(CHANNELS, bias=False)
        self.of_two_axes = nn.LayerNorm((5, CHANNELS))
        self.a, self.b = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.no_bias = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.embedding, self.tied = nn.Embedding(9, CHANNELS), nn.Linear(CHANNELS, 9)
        self.tied.weight = self.embedding.weight
        self.same_bias = nn.Linear(CHANNELS, CHANNELS)
        self.same_bias.bias = self.a.bias
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_()
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def heads(m: Network, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.a(y) @ m.b(y).mT


def first_and_rest(m: Network, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.a(y[:, 0]) + m.b(y[:, 1:].mean(1)) + m.a(y.flatten(0, 1)).mean(0)


def in_windows(m: Network, x: Tensor) -> Tensor:
    y = m.norm(x).roll(2, 1).permute(1, 0, 2).unsqueeze(1).expand(5, 2, x.shape[0], CHANNELS)
    return m.a(y.reshape(5, -1, CHANNELS)).sum(1)


FOLDABLE = {
    "one layer": (lambda m, x: m.a(m.norm(x)), True),
    "two layers": (heads, True),
    "parts and means": (first_and_rest, True),
    "windows": (in_windows, True),
    "a layer used twice": (lambda m, x: m.a(m.norm(x)[:, :2]) + m.a(m.norm(x)[:, 3:]), True),
    "a layer without bias": (lambda m, x: m.no_bias(m.norm(x)) + m.a(m.norm(x)), False),
    "a norm without offset": (lambda m, x: m.a(m.no_offset(x)), False),
    "a bias of two layers": (lambda m, x: m.same_bias(m.a(m.norm(x))), False),
}
LEFT_ALONE = {
    "added behind it": lambda m, x: m.a(m.norm(x)) + m.norm(x),
    "given back": lambda m, x: (m.a(m.norm(x)), m.norm(x)),
    "a shared norm": lambda m, x: m.a(m.norm(x)) + m.b(m.norm(x * 2)),
    "without gain": lambda m, x: m.a(m.plain(x)),
    "two axes": lambda m, x: m.a(m.of_two_axes(x)),
    "a weight that reads two norms": lambda m, x: m.a(m.norm(x)) + m.a(m.other(x)),
    "a weight that reads another tensor": lambda m, x: m.a(m.norm(x)) + m.a(x),
    "a weight that is looked up": lambda m, x: m.tied(m.norm(x + m.embedding(x[..., 0].abs().long() % 9)[:, :, :])),
    "a weight that is added": lambda m, x: m.a(m.norm(x)) + m.a.weight.sum(),
    "a gain that is added": lambda m, x: m.a(m.norm(x)) + m.norm.weight,
    "an activation between": lambda m, x: m.a(torch.relu(m.norm(x))),
    "channels that are mixed": lambda m, x: m.a(m.norm(x).transpose(1, 2).reshape(-1, 5, CHANNELS)),
    "channels that are averaged": lambda m, x: m.a(m.norm(x) + m.norm(x).mean(2, keepdim=True)),
    "channels that are rolled": lambda m, x: m.a(m.norm(x).roll(1, 2)),
    "tokens that are added": lambda m, x: m.a(m.norm(x).sum(1)),
    "a product with itself": lambda m, x: torch.nn.functional.linear(m.norm(x), m.norm(x)[0]),
}


def traced_of(forward) -> tuple[TracedModel, list]:
    torch.manual_seed(0)
    traced = TracedModel(Network(forward).eval(), (torch.randn(3, 5, CHANNELS),))
    parameters = {node: name for node, name in traced.parameter_names.items() if traced.nodes[node].users}
    return traced, rescalable_norms(traced, find_units(traced)[0], parameters)


@pytest.mark.parametrize("name", FOLDABLE)
def test_the_network_computes_the_same(name):
    forward, shifts = FOLDABLE[name]
    traced, (norm,) = traced_of(forward)
    assert norm.shifts is shifts
    factor = torch.exp(torch.randn(CHANNELS, dtype=torch.float64))
    shift = torch.randn(CHANNELS, dtype=torch.float64) if shifts else None
    changed = traced.with_state(rescaled(traced, norm, factor, shift))
    seen: dict[str, Tensor] = {}
    x = torch.randn(4, 5, CHANNELS)
    before = traced.run((x,), observe=seen.setdefault)
    after: dict[str, Tensor] = {}
    found = changed.run((x,), observe=after.setdefault)
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)
    moved = torch.zeros(CHANNELS) if shift is None else shift
    for tensor in norm.tensors:
        expected = ((seen[tensor] - moved) / factor).float()
        torch.testing.assert_close(after[tensor], expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[tensor], seen[tensor])


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_would_change_the_network_is_left_alone(name):
    assert traced_of(LEFT_ALONE[name])[1] == []


def test_parameters_that_are_not_to_be_changed_are_left_alone():
    traced, (norm,) = traced_of(FOLDABLE["one layer"][0])
    units = find_units(traced)[0]
    own = {norm.gain, norm.offset, norm.units[0].weight}
    assert rescalable_norms(traced, units, {name: name for name in own})[0].shifts is False
    for name in own:
        assert rescalable_norms(traced, units, {each: each for each in own - {name}}) == []
