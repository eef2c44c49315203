"""What torch's optimiser may leave out."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from calib.network.graph import TracedModel
from deploy.lowering.export import export_float


class Does(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


@pytest.mark.parametrize(
    ("what", "operators"),
    [
        (lambda x: torch.log(x + 1e-10), ["Add", "Log"]),
        (lambda x: torch.log(x - (-1e-30)), ["Sub", "Log"]),
        (lambda x: torch.sin(x + 0.0) * 1.0, ["Sin"]),
    ],
)
def test_only_what_changes_nothing_is_left_out(what, operators, tmp_path):
    x = torch.tensor([[0.0, 1.0], [1e-9, 2.0]])
    traced = TracedModel(Does(what).eval(), (x,))
    export_float(traced, (), tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), what(x))
    assert [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node] == operators
