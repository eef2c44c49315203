"""The exporter gets what a second decomposition would give, and only where that changes something is there one."""

from __future__ import annotations

from unittest import mock

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import ExportedProgram

from calib.network.graph import TracedModel
from calib.network.units import find_units
from deploy.lowering import exportable
from deploy.lowering.export import export_float


class Do(nn.Module):
    """A convolution and a linear layer, and what a test does with them."""

    def __init__(self, do):
        super().__init__()
        self.conv, self.linear, self.do = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), do

    def forward(self, x):
        return self.do(self, x)


def branches(m, x):
    y = torch.relu(m.conv(x))
    y = (y + 2 * y.sigmoid() - torch.arange(8)[:, None, None]).mean((2, 3))
    return torch.cat([part.softmax(-1) for part in m.linear(y).chunk(2, dim=1)], dim=1), y.argmax(1)


def padded(m, x):
    y = F.conv2d(x, m.conv.weight, padding="same") + m.conv(F.pad(x, (1, 1, 1, 1)))
    return branches(m, (y + y.view(len(x), 8, 36).flip(2).reshape(-1, 8, 6, 6))[:, :3])


def normed(m, x):
    """The exporter computes the product of parameters and calls it `mul`, as the product of the network is called."""
    y = m.conv(x).mean((2, 3))
    return m.linear(y) + F.linear(y, torch._weight_norm(m.linear.weight, m.linear.weight[:, :1])).relu() * 0.5


STAYS = {"branches": branches}
TAKEN_APART = {
    "padding": padded,
    "pools": lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 1) + F.adaptive_avg_pool2d(m.conv(x), 2),
    "pool in a row": lambda m, x: m.linear(F.adaptive_avg_pool1d(m.conv(x).flatten(2), 1).squeeze(2)) + 1,
    "largest": lambda m, x: F.adaptive_max_pool2d(m.conv(x), 2),
    "shuffled": lambda m, x: torch.channel_shuffle(m.conv(x), 2),
}
LEFT = {"a computed size": lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 2).reshape(x.shape[0] * 2, 16)}


def _exported(do, path):
    torch.manual_seed(0)
    traced = TracedModel(Do(do).eval(), (torch.randn(2, 3, 6, 6),), sizes=(1, 5))
    before = str(traced.graph)
    with mock.patch.object(ExportedProgram, "run_decompositions", autospec=True, side_effect=_decompose) as made:
        export_float(traced, find_units(traced)[0], path)
    assert str(traced.graph) == before  # calibration and search go on with it
    return onnx.load(str(path)), made.call_count


_decompose = ExportedProgram.run_decompositions


@pytest.mark.parametrize(
    ("do", "count"),
    [(do, count) for cases, count in ((STAYS, 0), (TAKEN_APART, 0), (LEFT, 1)) for do in cases.values()],
    ids=[*STAYS, *TAKEN_APART, *LEFT],
)
def test_a_program_is_traced_again_only_where_nothing_else_tells_what_becomes_of_it(do, count, tmp_path):
    model, traces = _exported(do, tmp_path / "a.onnx")
    assert traces == count
    with (
        mock.patch.object(exportable, "_stays", return_value=False),
        mock.patch.object(exportable, "without_retracing", return_value=None),
    ):
        again, traces = _exported(do, tmp_path / "b.onnx")
    assert traces == 1
    assert model == again


class NamedAsPythonDoes(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, input):  # noqa: A002
        return self.fc(input)


def test_an_input_may_have_a_name_that_python_has(tmp_path):
    traced = TracedModel(NamedAsPythonDoes().eval(), (torch.randn(2, 4),))
    export_float(traced, find_units(traced)[0], tmp_path / "a.onnx")
    assert [each.name for each in onnx.load(str(tmp_path / "a.onnx")).graph.input] == ["input"]


class Attends(nn.Module):
    """Attention with a mask, whose fused form may lay out its result in either way, and an operator that ONNX lacks."""

    def __init__(self):
        super().__init__()
        self.qkv, self.mask = nn.Linear(8, 24), nn.Parameter(torch.randn(1, 2, 5, 5))

    def forward(self, x):
        q, k, v = self.qkv(torch.min(x, 2 * x)).reshape(x.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.mask.expand(x.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape[0], 5, 8)


def test_what_is_traced_again_forgets_layouts(tmp_path):
    traced = TracedModel(Attends().eval(), (torch.randn(2, 5, 8),))
    export_float(traced, find_units(traced)[0], tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx")
    x = torch.randn(3, 5, 8)
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), traced.run((x,)), rtol=1e-4, atol=1e-5)


def test_a_constant_that_the_exporter_computes_leaves_the_name_of_a_tensor_alone(tmp_path):
    torch.manual_seed(0)
    traced = TracedModel(Do(normed).eval(), (torch.randn(2, 3, 6, 6),), sizes=(1, 5))
    assert "mul" in traced.nodes
    export_float(traced, find_units(traced)[0], tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx")
    x = torch.randn(3, 3, 6, 6)
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), traced.run((x,)), rtol=1e-4, atol=1e-5)
