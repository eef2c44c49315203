"""Which products belong to an attention, what they read, and which layers say how many bits they have."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.network.attention import find_attention
from calib.network.graph import TracedModel
from calib.network.nodes import operator_name
from calib.network.units import find_units

WIDTH = 8


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out, self.gate = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.norm = nn.LayerNorm(WIDTH)
        self.fixed = nn.Parameter(torch.randn(2, 3, WIDTH))

    def three(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.query(x), self.key(x), self.value(x)


class WrittenOut(Layers):
    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.three(x)
        shares = (query * WIDTH**-0.5 @ key.transpose(1, 2)).softmax(-1)
        return self.out(shares @ value)


class Fused(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(*self.three(x)))


class Einsums(Layers):
    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.three(x)
        scores = torch.einsum("bid,bjd->bij", query, key) / 3
        return self.out(torch.einsum("bjd,bij->bid", value, torch.softmax(scores, -1)))


class Masked(Layers):
    """Scores of two products and a bias, a soft limit, a mask on both sides of the softmax, a result read in parts."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.three(x)
        scores = query @ key.transpose(1, 2) + (query @ value.transpose(1, 2)).neg()
        scores = torch.tanh(scores / 5) * 5
        low = torch.ones(3, 3).triu(1).bool()
        shares = scores.masked_fill(low, -1e4).softmax(-1).masked_fill(low, 0.0)
        result = (shares @ value).reshape(-1, 3, WIDTH)
        return self.out(result[:, 0]) + self.gate(result[:, 1])


class Dual(Layers):
    """The scores are shared out along both axes."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.three(x)
        scores = query @ key.transpose(1, 2)
        return self.out(scores.softmax(-1) @ value) + self.gate(scores.transpose(1, 2).softmax(-1) @ query)


class FromLayers(Layers):
    """The scores are those of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.query(x)[..., :3].softmax(-1) @ self.value(x))


class Parameter(Layers):
    """The keys are a parameter of three axes, which is no layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.query(x) @ self.fixed.transpose(1, 2)[:1]).softmax(-1) @ self.value(x))


class Normed(Layers):
    """No layer reads the result."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(F.scaled_dot_product_attention(*self.three(x))))


class Classes(Layers):
    """A softmax that is no attention."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return self.out(x).softmax(-1).mean(1) + scores.sum((1, 2))[:, None]


def found(model: nn.Module):
    traced = TracedModel(model.eval(), (torch.randn(2, 3, WIDTH),), attention=True)
    units, _ = find_units(traced)
    calls = {call: unit.path for unit in units for call in unit.calls}

    def made_by(name: str) -> str:
        """The layer, or else the operator, that a tensor comes from."""
        node = traced.nodes[name]
        while node.name not in calls and operator_name(node) in ("transpose", "mul", "t"):
            node = node.all_input_nodes[0]
        return calls.get(node.name, operator_name(node))

    attention, skipped = find_attention(traced, units)
    return [
        ([made_by(tensor) for tensor, _ in each.operands], [calls[call] for call in each.readers], each, traced)
        for each in attention
    ], skipped


@pytest.mark.parametrize("model", [WrittenOut, Fused, Einsums])
def test_four_operands_and_the_layer_that_reads_the_result(model):
    ((operands, readers, attention, traced),), skipped = found(model())
    assert not skipped
    assert sorted(operands) == ["key", "query", "softmax", "value"]
    assert readers == ["out"]
    assert [operator_name(traced.nodes[name]) for name in attention.shares] == ["softmax"]
    assert [attention.scheme(tensor, "symmetric") for tensor, _ in attention.operands].count("affine") == 1
    for tensor, product in attention.operands:
        assert traced.nodes[tensor] in traced.nodes[product].all_input_nodes


def test_scores_of_several_products_behind_masks():
    ((operands, readers, attention, traced),), skipped = found(Masked())
    assert not skipped
    assert sorted(operands) == ["key", "masked_fill", "query", "query", "value", "value"]
    assert sorted(readers) == ["gate", "out"]
    assert [operator_name(traced.nodes[name]) for name in attention.shares] == ["masked_fill"]


def test_scores_of_a_layer_leave_one_product():
    ((operands, readers, _, _),), _ = found(FromLayers())
    assert (sorted(operands), readers) == (["softmax", "value"], ["out"])


def test_a_product_of_two_softmaxes_belongs_to_the_first():
    (first, second), skipped = found(Dual())
    assert not skipped
    assert sorted(first[0]) == ["key", "query", "softmax", "value"]
    assert sorted(second[0]) == ["query", "softmax"]
    assert (first[1], second[1]) == (["out"], ["gate"])


def test_a_parameter_stays_in_floating_point():
    ((operands, _, _, traced),), _ = found(Parameter())
    assert "query" in operands
    assert "value" in operands
    assert not any(tensor in traced.state for tensor in operands)


def test_without_a_layer_that_reads_the_result_it_is_told():
    attention, (skipped,) = found(Normed())
    assert not attention
    assert skipped.operator == "softmax"
    assert "no layer reads its result" in skipped.reason


def test_other_softmaxes_are_no_attention():
    assert found(Classes()) == ([], ())


@pytest.mark.parametrize("weights", [True, False])
def test_the_attention_of_torch(weights):
    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=weights)[0]

    ((operands, readers, attention, _),), skipped = found(Torch())
    assert not skipped
    assert len(operands) == 4
    assert readers == ["attention.out_proj"]
    assert attention.path == "attention"
