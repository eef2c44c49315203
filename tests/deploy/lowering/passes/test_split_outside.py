"""Queries, keys and values from one product: split along an outer axis, the same numbers, an integer kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from deploy.lowering.onnx_files import save_model
from deploy.lowering.passes.quantize_tensors import quantize_tensors
from deploy.lowering.passes.quantize_weights import quantize_weights
from deploy.lowering.passes.split_outside import split_outside
from tests.deploy.networks import export, nodes, run_plain


class _Attention(nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.product, self.output = nn.Linear(32, 96, bias=bias), nn.Linear(32, 8)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.product(x).chunk(3, -1)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.parts(x))
        return self.output(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class _Sizes(_Attention):
    """The sizes are named, and the axis is counted from the front."""

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.product(x).split([32, 32, 32], 2)


class _Sliced(_Attention):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.product(x)
        return x[..., 64:], x[..., :32], x[..., 32:64]


class _Overlapping(_Attention):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.product(x)
        return x[..., 64:], x[..., :32], x[..., 16:48]


class _Uneven(_Attention):
    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second, third = self.product(x).split([48, 32, 16], -1)
        return first[..., :32], second, torch.cat([third, third], -1)


class _Gated(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.parts(x)
        return self.output(silu(first) * second + third)


class _OtherAxis(_Attention):
    """It is the rows that are split, and reshaped."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (part.unflatten(-1, (4, -1)).mean(2) for part in self.product(x).chunk(3, 1))
        return self.output(torch.cat([first, second, third], -1)[..., :32])


def _passed(network: nn.Module, path, text: str = "w8a8") -> int:
    torch.manual_seed(0)
    exported = export(network, torch.randn(2, 6, 32), path.parent)
    plan, _ = exported.plan(exported.formats(text, text), "tensorrt-rtx")
    model = exported.model()
    quantize_weights(model, plan, exported.units)
    quantize_tensors(model, plan, exported.units)
    save_model(model, path.with_name("before.onnx"))
    changed = split_outside(model, plan, exported.units)
    save_model(model, path)
    before = run_plain(path.with_name("before.onnx"), exported.batch)
    np.testing.assert_array_equal(run_plain(path, exported.batch), before)
    return changed


@pytest.mark.parametrize("network", [_Attention(), _Attention(bias=False), _Sizes(), _Sliced()])
def test_equal_parts_that_become_heads(tmp_path, network):
    assert _passed(network, tmp_path / "model.onnx") == 1
    operators = [node.op_type for node in nodes(tmp_path / "model.onnx").values()]
    assert "Split" not in operators
    assert operators.count("Gather") == 3


LEFT = [(_Attention(), "w8a16"), *((network(), "w8a8") for network in (_Uneven, _Overlapping, _Gated, _OtherAxis))]


@pytest.mark.parametrize(("network", "text"), LEFT)
def test_what_is_left_alone(tmp_path, network, text):
    assert _passed(network, tmp_path / "model.onnx", text) == 0
