"""The pass that casts operands makes what it makes when it runs each operator."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import onnx
import pytest
import torch
from torch import nn
from torch.onnx._internal.fx.passes import type_promotion

from calib.network.graph import TracedModel
from calib.network.units import find_units
from deploy.lowering import export
from deploy.lowering.promotion import promotion_reads_the_graph


class Mixed(nn.Module):
    """Integers with floats, numbers with tensors, half with single precision, sums of truth values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = self.layer(x) + torch.arange(4)
        y = torch.where(y > 0, y * 2, torch.tensor(1, dtype=torch.int64) / 3) + y.half()
        z = y.pow(2) + (y > 1) + y.argmax(1)[:, None] * 0.5 + x.shape[0]
        return z.softmax(-1), (z > 0).sum(1) / 2, torch.atan2(z, y.long()), torch.cat([y, y.half()], 1)


def _exported(path):
    torch.manual_seed(0)
    traced = TracedModel(Mixed().eval(), (torch.randn(2, 4),), sizes=(1, 5))
    ran = type_promotion._TypePromotionInterpreter.call_function
    with mock.patch.object(
        type_promotion._TypePromotionInterpreter, "call_function", autospec=True, side_effect=ran
    ) as runs:
        export.export_float(traced, find_units(traced)[0], path)
    return onnx.load(str(path)), runs.call_count


def test_the_model_is_as_when_each_operator_is_run(tmp_path):
    model, runs = _exported(tmp_path / "a.onnx")
    with mock.patch.object(export, "promotion_reads_the_graph", nullcontext):
        again, all_runs = _exported(tmp_path / "b.onnx")
    assert model == again
    assert {"Cast"} < {node.op_type for node in model.graph.node}
    assert 0 < runs < all_runs - len(model.graph.node) / 2


@pytest.mark.parametrize("name", ["_TypePromotionInterpreter", "get_type_promotion_rule"])
def test_another_pass_is_left_alone(monkeypatch, name):
    monkeypatch.delattr(type_promotion, name)
    assert isinstance(promotion_reads_the_graph(), nullcontext)
