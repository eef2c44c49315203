import pytest
import torch
from torch import Tensor, nn

from calib.network.einsums import spell_out_einsums
from calib.network.graph import TracedModel
from calib.network.nodes import operator_name
from calib.network.products import parameter_from_weight
from calib.network.units import find_units


class Spellings(nn.Module):
    """Linear layers that are no modules; each is named by how it is spelt."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "addmm": (4, 6), "mm": (6, 6), "matmul": (6, 5), "transposed": (6, 5), "linear_of_transposed": (6, 4),
            "heads": (4, 2, 3), "left": (6, 4), "merged": (2, 3, 5),
        }  # fmt: skip
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        self.bias, self.table = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(1, 6))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = torch.mm(torch.addmm(self.bias, x, self.addmm), self.mm)
        tokens = y[:, None] + self.table
        heads = torch.einsum("ntk,khd->nthd", nn.functional.linear(tokens, self.linear_of_transposed.T), self.heads)
        return [
            torch.addmm(self.table, x, self.addmm),
            torch.matmul(tokens, self.matmul) @ self.transposed.T,
            torch.einsum("ok,nk->no", self.left, x),
            torch.einsum("...hd,hdo", heads, self.merged),
        ]


@pytest.fixture(scope="module")
def traced() -> TracedModel:
    torch.manual_seed(0)
    return TracedModel(Spellings().eval(), (torch.randn(2, 4),))


def test_every_spelling_is_a_linear_layer_with_the_same_result(traced):
    units, skipped = find_units(traced)
    assert {unit.path: unit.weight_shape for unit in units} == {
        "addmm": (6, 4), "mm": (6, 6), "matmul": (5, 6), "transposed": (6, 5), "linear_of_transposed": (4, 6),
        "heads": (6, 4), "left": (6, 4), "merged": (5, 6),
    }  # fmt: skip
    assert [entry.path for entry in skipped] == ["table"]
    assert "add reads it" in skipped[0].reason
    by_path = {unit.path: unit for unit in units}
    assert len(by_path["addmm"].calls) == 2
    assert by_path["addmm"].bias is None, "one call adds a bias, the other a table"
    assert not {"addmm", "mm", "matmul", "einsum"} & {operator_name(node) for node in traced.steps}
    x = torch.randn(3, 4)
    for found, expected in zip(traced.run((x,)), traced.module(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_parameter_comes_back_from_its_weight(traced):
    assert {traced.parameter_names[node] for node in traced.arranged} == {
        "addmm", "mm", "matmul", "linear_of_transposed", "heads", "merged",
    }  # fmt: skip
    for node, arrange in traced.arranged.items():
        parameter = traced.module.get_parameter(traced.parameter_names[node])
        assert torch.equal(arrange(parameter), traced.state[node])
        assert torch.equal(parameter_from_weight(traced.state[node], arrange, parameter.shape), parameter)


class LeftAlone(nn.Module):
    """Products that no linear layer computes, and parameters that something else reads."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("both", "on_the_left", "scaled", "halved"):
            setattr(self, name, nn.Parameter(torch.randn(4, 4)))
        self.batch, self.layer = nn.Parameter(torch.randn(4, 4, 4)), nn.Linear(4, 4)
        self.register_buffer("basis", torch.randn(4, 4))  # nothing that was learnt

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x) @ self.basis @ self.both
        x = torch.matmul(self.on_the_left, (x @ self.both.T).T).T
        x = torch.addmm(x[0], x, self.scaled, alpha=0.5)
        return torch.einsum("nk,kko->no", x, self.batch) + x @ (self.halved / 2)


def test_other_products_stay_and_are_named():
    traced = TracedModel(LeftAlone().eval(), (torch.randn(4, 4),), free=False)
    units, skipped = find_units(traced)
    assert [unit.path for unit in units] == ["layer"]
    reasons = {entry.path: entry.reason for entry in skipped}
    assert reasons.keys() == {"both", "on_the_left", "scaled", "batch", "halved"}
    assert "read by matmul too" in reasons["both"], "one of its two layouts is a linear layer's"
    assert all("no linear layer computes" in reasons[name] for name in ("on_the_left", "scaled", "batch"))
    assert "div reads it" in reasons["halved"]
    assert not traced.arranged
    x = torch.randn(4, 4)
    torch.testing.assert_close(traced.run((x,)), traced.module(x))


@pytest.mark.parametrize(
    ("equation", "dims", "linear"),
    [
        ("nk,ko->no", (2, 2), True),
        ("nk,ko->on", (2, 2), True),
        ("...k,ok", (3, 2), True),
        ("nhk,hko->nho", (3, 3), False),
        ("nk,k->n", (2, 1), False),
        ("nk,ko->o", (2, 2), False),
        ("nk,jo->nk", (2, 2), False),
        ("nn,no->o", (2, 2), False),
        ("nk,...k->n...", (2, 2), False),
    ],
)
def test_which_einsums_are_linear_layers(equation, dims, linear):
    graph = torch.fx.Graph()
    data, weight = (graph.placeholder(name) for name in ("data", "weight"))
    for node, dim in ((data, dims[0]), (weight, dims[1])):
        node.meta["val"] = torch.ones([3] * dim)
    node = graph.call_function(torch.ops.aten.einsum.default, (equation, [data, weight]))
    node.meta["val"] = None
    graph.output(node)
    spell_out_einsums(graph, {"weight"})
    names = [operator_name(node) for node in graph.nodes]
    assert ("linear" in names, "einsum" in names) == (linear, not linear)
