"""Tables of torch that are kept while tests run change nothing that torch makes."""

from unittest import mock

import torch
from torch import nn
from torch.export import exported_program
from torch.fx.experimental.sym_node import SymNode
from torch.onnx._internal.exporter import _decomp

from tests.symbols_kept import TORCHS, symbols_kept
from tests.torch_kept import decompositions_kept, operators_kept, overrides_kept


class Composite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer(x)
        return nn.functional.scaled_dot_product_attention(x, x, x).flatten(1)


def decomposed(program, table):
    return [f"{node.op} {node.target}" for node in program.run_decompositions(table).graph.nodes]


def test_programs_and_operators_are_as_without():
    program = torch.export.export(Composite().eval(), (torch.ones(2, 3, 4),))
    operator = torch.ops.aten.linear.default
    kernels = dict(operator.py_kernels)
    with overrides_kept():
        found = [(decomposed(program, {}), decomposed(program, None)) for _ in range(3)]
        assert dict(operator.py_kernels) == kernels
    assert found[0] == found[1] == found[2]
    assert "call_function aten.linear.default" in found[0][0]
    assert "call_function aten.linear.default" not in found[0][1]


def test_a_table_of_ones_own_is_obeyed():
    program = torch.export.export(Composite().eval(), (torch.ones(2, 3, 4),))
    calls = []

    def linear(x, weight, bias=None):
        calls.append(len(calls))
        return x @ weight.T + bias

    first = decomposed(program, {})
    assert "call_function aten.linear.default" not in decomposed(program, {torch.ops.aten.linear.default: linear})
    assert calls
    assert decomposed(program, {}) == first


def test_the_exporters_decompositions_are_as_without():
    registered = {torch.ops.aten.linear.default, torch.ops.aten.addmm.default}
    first = _decomp.create_onnx_friendly_decomposition_table(registered)
    with decompositions_kept():
        kept = _decomp.create_onnx_friendly_decomposition_table(registered)
        kept.clear()  # a table of its own for whoever asks
        kept = _decomp.create_onnx_friendly_decomposition_table(registered)
        others = _decomp.create_onnx_friendly_decomposition_table({torch.ops.aten.linear.default})
    assert list(kept) == list(first)
    assert others.keys() - first.keys() == {torch.ops.aten.addmm.default}


def test_an_operator_that_is_new_is_found():
    with operators_kept():
        before = exported_program._collect_all_valid_cia_ops()
        assert exported_program._collect_all_valid_cia_ops() is before, "kept"
        with torch.library._scoped_library("smpq_tests", "DEF") as library:
            library.define("twice(Tensor x) -> Tensor")
            library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
            new = exported_program._collect_all_valid_cia_ops() - before
            assert new == {torch.ops.smpq_tests.twice.default}


class Sizes(nn.Module):
    """Sums, products and comparisons of sizes, which are computed and, some of them, recorded."""

    def forward(self, x):
        padded = nn.functional.pad(x, (1, 2))
        halves = padded.reshape(x.shape[0] * 2, -1)
        return torch.cat([halves, halves[:, : x.shape[1] // 2].repeat(1, 3)], 1), padded.transpose(1, 2).contiguous()


def written(program):
    nodes = [f"{node.format_node()} {node.meta.get('val')}" for node in program.graph.nodes]
    return [*nodes, str(program.range_constraints), str(program._guards_code)]


def test_sizes_are_as_without():
    dimensions = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    counted = mock.Mock(wraps=TORCHS["_mul"])

    def traced():
        counted.reset_mock()
        program = torch.export.export(Sizes().eval(), (torch.ones(4, 6, 5),), dynamic_shapes=dimensions)
        return written(program) + written(program.run_decompositions({})), counted.call_count

    def multiply(one, two):
        return counted(one, two)

    operators = {**TORCHS, "_mul": multiply}
    with mock.patch.multiple(SymNode, **operators):
        plain, all_products = traced()
    with mock.patch.dict(TORCHS, operators), symbols_kept():
        kept, products = traced()
    assert kept == plain
    assert any("sym_size_int" in line for line in plain)
    assert products < all_products / 2
