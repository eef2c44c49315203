import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.network.graph import TracedModel
from calib.network.nodes import operator_name


class Twice(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.run = forward
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor):
        return self.run(self.layer, x)


def traced(forward) -> TracedModel:
    torch.manual_seed(0)
    return TracedModel(Twice(forward).eval(), (torch.randn(2, 4),))


def count(model: TracedModel, name: str) -> int:
    return sum(operator_name(node) == name for node in model.graph.nodes)


def same_results(model: TracedModel) -> bool:
    x = torch.randn(3, 4)
    found, expected = model.run((x,)), model.module(x)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    return all(torch.equal(one, two) for one, two in pairs)


def test_equal_calls_are_one_node_and_so_is_what_follows_them():
    model = traced(lambda layer, x: F.relu(layer(x)) + F.relu(layer(x)) * layer(x))
    assert (count(model, "linear"), count(model, "relu")) == (1, 1)
    assert same_results(model)


def test_a_copy_counts_as_what_it_copies():
    model = traced(lambda layer, x: F.relu(layer(x)) + layer(x.clone().view(x.shape)))
    assert count(model, "linear") == 1
    assert same_results(model)


def test_outputs_that_were_merged_are_returned_twice():
    model = traced(lambda layer, x: (layer(x), F.relu(layer(x)), layer(x)))
    assert count(model, "linear") == 1
    assert same_results(model)
    assert [spec.arg.name for spec in model.program.graph_signature.output_specs] == [
        node.name for node in model.output.args[0]
    ]


def test_what_differs_in_value_or_type_stays_apart():
    model = traced(lambda layer, x: layer(x + 1) + layer(x + 1.0) + layer(x + True) + layer(x.transpose(0, 0) + 2))
    assert count(model, "add") == 7
    assert same_results(model)


def test_parts_of_a_split_stay_apart():
    model = traced(lambda layer, x: torch.cat(layer(x).chunk(2, 1), 0) - torch.cat(layer(x).chunk(2, 1)[::-1], 0))
    assert count(model, "linear") == 1
    assert same_results(model)
