"""The code of a graph is written when somebody runs it, and what is traced is the same."""

import sys
from contextlib import nullcontext
from unittest import mock

import torch
from torch import fx, nn

from calib.network.graph import TracedModel
from calib.network.unwritten import unwritten_code


class Grown(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        x += 1
        return x.flatten(1)


def traced():
    model = TracedModel(Grown().eval(), (torch.ones(2, 3, 4),), sizes=(1, 5))
    return [node.format_node() for node in model.graph.nodes], model.dynamic_batch


def test_a_trace_is_as_with_written_code_and_writes_less():
    with mock.patch.object(fx.Graph, "python_code", autospec=True, side_effect=fx.Graph.python_code) as written:
        found = traced()
        unwritten = written.call_count
        written.reset_mock()
        with mock.patch("calib.network.free_axes.unwritten_code", nullcontext):
            assert traced() == found
        assert unwritten < written.call_count / 1.5


def test_who_runs_a_graph_gets_its_code():
    layer = nn.Linear(4, 2)
    with unwritten_code():
        module = fx.symbolic_trace(nn.Sequential(layer))
    x = torch.ones(3, 4)
    assert torch.equal(module(x), layer(x))


def test_a_torch_without_it_writes_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.fx._lazy_graph_module", None)
    with unwritten_code():
        pass
