"""The float model: names, values, weights, and what must not be in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.errors import UserError
from calib.network.graph import TracedModel
from calib.network.units import find_units
from deploy.lowering.export import export_float, read_aliases
from tests.deploy.networks import Exported, export, nodes, residual, run_all_values, run_plain


def _check_values(exported: Exported) -> set[str]:
    """Compare every tensor of the traced graph with the ONNX value of its name; returns those without one."""
    seen: dict[str, Tensor] = {}
    exported.traced.run((exported.batch,), observe=lambda name, tensor: seen.setdefault(name, tensor.clone()))
    values = run_all_values(exported.path, exported.batch)
    aliases = read_aliases(exported.model())
    missing = set()
    for name, tensor in seen.items():
        value = values.get(aliases.get(name, name))
        if value is None:
            missing.add(name)
        else:
            np.testing.assert_allclose(value, tensor.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
    return missing


def test_every_unit_has_a_node_of_its_name():
    exported = residual()
    named = nodes(exported.path)
    assert {unit.path for unit in exported.units} <= set(named)
    assert {named[unit.path].op_type for unit in exported.units} == {"Conv", "MatMul", "Gemm"}
    assert named["twice"].input[1] == named["twice#2"].input[1]
    assert len(named) == len(onnx.load(str(exported.path)).graph.node)


def test_every_tensor_of_the_traced_graph_is_a_value_of_its_name():
    exported = residual()
    assert _check_values(exported) <= {"x"}


def test_the_exporter_counts_sums_anew_but_the_names_are_those_of_the_trace():
    # `add_12` of the trace is `add_1` in the exporter's graph where its own copy counts differently.
    exported = residual()
    sums = [node.name for node in exported.traced.graph.nodes if "add" in str(node.target)]
    produced = {name for node in nodes(exported.path).values() for name in node.output}
    assert len(sums) >= 4
    assert set(sums) <= produced


def test_a_removed_no_op_is_an_alias():
    exported = residual()
    aliases = read_aliases(exported.model())
    clone = next(node.name for node in exported.traced.graph.nodes if "clone" in str(node.target))
    assert aliases[clone] == exported.units[4].calls[0]


def test_the_batch_is_dynamic_and_named():
    exported = residual()
    graph = onnx.load(str(exported.path)).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    expected = exported.traced.run((exported.batch[:5],)).numpy()
    np.testing.assert_allclose(run_plain(exported.path, exported.batch[:5]), expected, atol=1e-5)


class Nodes(nn.Module):
    """A cell over the nodes of a graph, which are part of the batch meanwhile. In C++ it asks for sizes as numbers."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell = cell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, nodes, width = x.shape
        state = torch.tanh(x).reshape(-1, width)
        return self.cell(state, state).reshape(n, nodes, width).mean(1)


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.RNNCell])
def test_the_batch_is_still_free_behind_operators_that_ask_for_sizes_as_numbers(cell, tmp_path):
    module = Nodes(cell).eval()
    exported = export(module, torch.randn(2, 5, 8), tmp_path)
    for samples in (1, 4):
        x = torch.randn(samples, 5, 8)
        np.testing.assert_allclose(run_plain(exported.path, x), module(x).detach().numpy(), atol=1e-5)


def test_the_file_holds_no_paths_and_no_stack_traces():
    content = residual().path.read_bytes()
    for text in (b"stack_trace", b".py", b"site-packages", str(Path.cwd()).encode(), b"pkg.torch"):
        assert text not in content


class Spectrum(nn.Linear):
    """torch logs a traceback where it takes this apart, and then does it in another way."""

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(super().forward(x)))


@pytest.mark.parametrize("layer", [nn.Linear, Spectrum])
def test_export_says_nothing(layer, tmp_path, capfd):
    export(nn.Sequential(layer(4, 4)), torch.randn(4, 4), tmp_path)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", ""), "warnings of loggers too, which nobody else writes"
    assert [file.name for file in tmp_path.iterdir()] == ["model.float.onnx"]


def test_opset_21():
    assert residual().model().opset_imports[""] == 21


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.free = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.second(F.relu(self.first(x))), self.free)


def test_tied_layers_go_by_one_path_and_free_parameters_by_their_name(tmp_path):
    exported = export(_Tied(), torch.randn(4, 6), tmp_path)
    assert {"first", "first#2", "free"} <= set(nodes(exported.path))
    assert "second" not in nodes(exported.path)
    assert not _check_values(exported) - {"x"}


class _SameCallTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x)) + torch.sigmoid(self.layer(x))


def test_equal_calls_are_one_call_before_and_after_the_export(tmp_path):
    exported = export(_SameCallTwice(), torch.randn(4, 6), tmp_path)
    assert len(exported.units[0].calls) == 1
    assert [name for name in nodes(exported.path) if name.startswith("layer")] == ["layer"]
    assert not _check_values(exported) - {"x"}


class _Splits(nn.Module):
    """Results that are tuples, attention, normalisation, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.inner(x).chunk(2, dim=-1)
        y = self.norm(first * torch.sigmoid(second))
        z = y + self.attention(y, y, y, need_weights=False)[0]
        return z, z.mean(1)


def test_tuples_attention_and_several_outputs(tmp_path):
    exported = export(_Splits(), torch.randn(2, 5, 8), tmp_path)
    assert {"inner", "attention.in_proj_weight", "attention.out_proj"} <= set(nodes(exported.path))
    # The parts of a split have no name of their own; their readers do.
    assert {"getitem", "getitem_1"} <= _check_values(exported)
    assert len(exported.model().graph.outputs) == 2


class _Alike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        nn.init.zeros_(self.a.weight)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * torch.sigmoid(self.b(x))


def test_two_layers_that_the_exporter_cannot_tell_apart_are_an_error_of_words(tmp_path):
    with pytest.raises(UserError, match=r"^b: .*no Conv, Gemm, MatMul or Gather"):
        export(_Alike(), torch.randn(4, 3, 4), tmp_path)


def test_what_onnx_cannot_express_is_a_user_error_with_the_operator(tmp_path):
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(self.layer(x))

    traced = TracedModel(Strange().eval(), (torch.randn(2, 4),))
    units, _ = find_units(traced)
    with pytest.raises(UserError, match="bessel_j0"):
        export_float(traced, units, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class OneGroupASample(nn.Linear):
    """A convolution by weights that are made of each sample: its groups are the samples."""

    def forward(self, x):
        count = x.shape[0]
        weights = super().forward(x).view(count * 4, 1, 1, 1)
        return F.conv2d(x.view(1, count * 4, 1, 1), weights, groups=count * 4).view(count, 4)


def test_a_size_where_onnx_wants_a_number_is_told(tmp_path):
    with pytest.raises(
        UserError, match=r"operator torch\.ops\.aten\.conv2d.*: one of its arguments, as the groups of a"
    ):
        export(OneGroupASample(4, 4), torch.randn(4, 4), tmp_path)


def test_products_over_an_axis_have_an_operator(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), Cumulated())
    exported = export(model, batch := torch.randn(5, 4), tmp_path)
    np.testing.assert_allclose(run_plain(exported.path, batch), model(batch).detach().numpy(), rtol=1e-4, atol=1e-6)


class Cumulated(nn.Module):
    def forward(self, x):
        return torch.cumprod(x, 1) * x.prod(1, keepdim=True)


def test_initialisers_are_the_weights_of_the_units():
    exported = residual()
    model = exported.model()
    by_name = {node.name: node for node in model.graph}
    for unit in exported.units:
        stored = by_name[unit.path].inputs[1]
        assert isinstance(stored, ir.Value)
        weight = exported.traced.state[unit.weight].numpy()
        array = stored.const_value.numpy()
        assert array.shape in {weight.shape, weight.T.shape}
        assert np.array_equal(array, weight) or np.array_equal(array, weight.T)


class _OneOrMany(nn.Module):
    """`squeeze` does something for one sample only; torch's exporter writes it for any number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x.squeeze(0) * 2).reshape(x.shape))


def test_what_torch_exports_as_illegal_onnx_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="exporter cannot express this model") as refusal:
        export(_OneOrMany(), torch.randn(4, 6), tmp_path)
    assert "\n" not in str(refusal.value)
