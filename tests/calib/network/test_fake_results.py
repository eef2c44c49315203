"""What operators make of fake tensors is looked up where layers repeat, and the trace is the same."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import nn

from calib.network.fake_results import fake_results, layers_repeat
from calib.network.graph import TracedModel


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        y = torch.cat([y, y.clamp(0, 1)], 1)[:, ::2] + y
        return self.linear(y.flatten(2).transpose(1, 2)).softmax(-1), y.argmax(1), y.expand(2, *y.shape)


REPEATED = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)))


def described(model, x):
    traced = TracedModel(model.eval(), (x,), sizes=(1, 5))
    nodes = [(node.format_node(), node.meta.get("val")) for node in traced.graph.nodes]
    mode = next(value.fake_mode for _, value in nodes if isinstance(value, torch.Tensor))
    values = [
        (text, [str(part) for part in value] if isinstance(value, tuple) else str(value)) for text, value in nodes
    ]
    return (values, traced.dynamic_batch), mode.cache_enabled


@pytest.mark.parametrize(
    ("model", "x", "looked_up"), [(Alone(), torch.ones(2, 3, 6, 6), False), (REPEATED, torch.ones(2, 4), True)]
)
def test_layers_that_repeat_are_looked_up_and_the_trace_is_the_same(model, x, looked_up):
    found, enabled = described(model, x)
    assert enabled == looked_up
    for repeats in (True, False):
        with mock.patch("calib.network.fake_results.layers_repeat", return_value=repeats):
            assert described(model, x) == (found, repeats)


def test_a_layer_without_parameters_yet_is_a_kind():
    assert not layers_repeat(nn.Sequential(nn.LazyLinear(4), nn.ReLU()))


def test_a_torch_without_the_setting_is_left_alone():
    with mock.patch("torch._dynamo.config", object()):
        assert isinstance(fake_results(nn.Linear(2, 2)), nullcontext)
