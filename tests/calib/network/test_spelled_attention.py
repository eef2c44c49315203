"""Fused attention written out: the numbers stay, and what is left fused is said."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from calib.network.graph import TracedModel
from calib.network.nodes import operator_name
from calib.network.spelled_attention import why_fused

FUSED = "scaled_dot_product_attention"
WIDTH, HEADS = 12, 3


class Attention(nn.Module):
    """Attention of `queries` tokens over all others, with two heads of keys where `groups` says so."""

    def __init__(self, *, queries: int = 6, groups: int = HEADS, **options: object) -> None:
        super().__init__()
        self.queries, self.groups, self.options = queries, groups, options
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, groups * WIDTH // HEADS)
        self.value = nn.Linear(WIDTH, groups * WIDTH // HEADS)
        self.out = nn.Linear(WIDTH, WIDTH)

    def mask(self, x: Tensor) -> Tensor | None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x[:, : self.queries]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        key, value = (layer(x).unflatten(-1, (self.groups, -1)).transpose(1, 2) for layer in (self.key, self.value))
        options = {**self.options, "enable_gqa": self.groups != HEADS}
        return self.out(
            F.scaled_dot_product_attention(query, key, value, self.mask(x), **options).transpose(1, 2).flatten(2)
        )


class Allowed(Attention):
    """Whether a token may be looked at depends on the token; the first two see nothing at all."""

    def mask(self, x: Tensor) -> Tensor | None:
        rows = torch.arange(self.queries)[:, None] > 1
        return ((x[:, None, None, :, 0] > 0) & rows).expand(-1, -1, -1, -1)


class Biased(Attention):
    """A bias of each pair of tokens, and one row that is all masked."""

    def mask(self, x: Tensor) -> Tensor | None:
        bias = torch.linspace(-2, 2, self.queries * 7).reshape(self.queries, 7).clone()
        return torch.where(torch.arange(self.queries)[:, None] == 2, -math.inf, bias)


FORMS = {
    "plain": Attention,
    "scale": lambda: Attention(scale=0.7),
    "no scale": lambda: Attention(scale=0.0),
    "causal": lambda: Attention(queries=7, is_causal=True),
    "causal, fewer queries": lambda: Attention(queries=4, is_causal=True),
    "boolean mask": Allowed,
    "float mask": Biased,
    "groups": lambda: Attention(groups=1),
    "causal groups": lambda: Attention(queries=7, groups=1, is_causal=True, scale=0.3),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_numbers_stay(form):
    torch.manual_seed(0)
    model = FORMS[form]().eval().requires_grad_(False)
    with torch.no_grad():
        for layer in (model.query, model.key):
            layer.weight *= 4  # scores that differ, so that shares do
    traced = TracedModel(model, (torch.randn(2, 7, WIDTH),), attention=True)
    assert FUSED not in map(operator_name, traced.steps)
    assert [operator_name(node) for node in traced.steps].count("matmul") == 2
    assert traced.dynamic_batch
    for count in (1, 5):
        x = torch.randn(count, 7, WIDTH)
        torch.testing.assert_close(traced.run((x,)), model(x), rtol=1e-5, atol=1e-5)


def test_nothing_changes_without_being_asked():
    model = Attention().eval()
    traced = TracedModel(model, (torch.randn(2, 7, WIDTH),))
    assert FUSED in map(operator_name, traced.steps)
    assert not traced.attention


def test_a_sum_with_a_product_is_taken_apart():
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.triu(torch.full((7, 7), -3.0), 1)
            return self.attention(x, x, x, attn_mask=mask)[0]

    model, x = Summed().eval(), torch.randn(2, 7, WIDTH)
    names = [operator_name(node) for node in TracedModel(model, (x,)).steps]
    assert "baddbmm" in names, "the operator that this is about"
    traced = TracedModel(model, (x,), attention=True)
    assert "baddbmm" not in map(operator_name, traced.steps)
    torch.testing.assert_close(traced.run((x,)), model(x), rtol=1e-5, atol=1e-6)


def node(target, *, size=4, **options):
    graph = fx.Graph()
    tensors = [graph.placeholder(name) for name in ("query", "key", "value")]
    for tensor in tensors:
        tensor.meta["val"] = torch.empty(2, 3, 5, size, device="meta")
    return graph.call_function(target, tuple(tensors), options)


def test_what_stays_fused_is_told_why():
    fused = torch.ops.aten.scaled_dot_product_attention.default
    assert why_fused(node(fused)) is None
    assert "dropout" in why_fused(node(fused, dropout_p=0.1))
    assert "mask" in why_fused(node(fused, is_causal=True, attn_mask=fx.Graph().placeholder("mask")))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    assert "not written out" in why_fused(node(flash))
    assert why_fused(node(torch.ops.aten.relu.default)) is None
