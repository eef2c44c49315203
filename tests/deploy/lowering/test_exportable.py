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


class Branches(nn.Module):
    def __init__(self, padding, pool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3, padding=padding), pool
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        y = y + 2 * y.sigmoid() - torch.arange(8)[:, None, None]
        y = self.pool(y).mean((2, 3))
        return torch.cat([part.softmax(-1) for part in self.head(y).chunk(2, dim=1)], dim=1), y.argmax(1)


class Halves(nn.Module):
    """Computes a size, which is left to torch."""

    def forward(self, x):
        return x.reshape(x.shape[0] * 2, 4, 6, 6).abs().reshape(x.shape[0], 8, 6, 6)


def _exported(padding, pool, path):
    traced = TracedModel(Branches(padding, pool).eval(), (torch.randn(2, 3, 6, 6),))
    before = str(traced.graph)
    with mock.patch.object(ExportedProgram, "run_decompositions", autospec=True, side_effect=_decompose) as made:
        export_float(traced, find_units(traced)[0], path)
    assert str(traced.graph) == before  # calibration and search go on with it
    return onnx.load(str(path)), made.call_count


_decompose = ExportedProgram.run_decompositions


_CASES = [(1, nn.Identity(), 0), ("same", nn.AdaptiveAvgPool2d(2), 0), (1, Halves(), 1)]


@pytest.mark.parametrize(("padding", "pool", "count"), _CASES, ids=["nothing to do", "by the table", "traced again"])
def test_a_program_is_traced_again_only_where_that_tells_what_the_exporter_lacks(padding, pool, count, tmp_path):
    torch.manual_seed(0)
    model, traces = _exported(padding, pool, tmp_path / "a.onnx")
    assert traces == count
    torch.manual_seed(0)
    with (
        mock.patch.object(exportable, "_stays", return_value=False),
        mock.patch.object(exportable, "without_retracing", return_value=None),
    ):
        again, traces = _exported(padding, pool, tmp_path / "b.onnx")
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


def check_export(traced, file):
    """Export, and compare with PyTorch on another number of samples."""
    export_float(traced, find_units(traced)[0], file)
    session = ort.InferenceSession(file)
    x = torch.randn(3, 5, 8)
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), traced.run((x,)), rtol=1e-4, atol=1e-5)


def test_what_is_traced_again_forgets_layouts(tmp_path):
    traced = TracedModel(Attends().eval(), (torch.randn(2, 5, 8),))
    check_export(traced, tmp_path / "model.onnx")


class HeadsAmongSamples(nn.Module):
    """Computes a size, which is left to torch, and attends without an axis of heads, which the exporter refuses."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        count, heads = x.shape[0], 2
        q, k, v = self.qkv(x).reshape(count, 5, 3, heads, 4).permute(2, 0, 3, 1, 4).unbind(0)
        q, k, v = (each.reshape(count * heads, 5, 4) for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).reshape(count, heads, 5, 4).transpose(1, 2).flatten(2)


def test_what_is_traced_again_is_the_copy_that_was_rewritten(tmp_path):
    traced = TracedModel(HeadsAmongSamples().eval(), (torch.randn(2, 5, 8),))
    check_export(traced, tmp_path / "model.onnx")
    attended = next(node.name for node in traced.graph.nodes if "scaled_dot_product" in str(node.target))
    assert attended.encode() in (tmp_path / "model.onnx").read_bytes(), "the result of the attention keeps its name"
