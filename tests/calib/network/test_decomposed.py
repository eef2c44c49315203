"""What is made node by node is what torch's second trace gives, or nothing."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from calib.network.decomposed import without_retracing
from calib.network.tracing import forget_layouts, trace_program


class Do(nn.Module):
    """A convolution, a norm and a linear layer, and what a test does with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 6)
        self.register_buffer("count", torch.zeros(4))
        self.do = forward

    def forward(self, x: Tensor) -> Any:
        return self.do(self, x)


def on(tensor: Tensor, do: Callable[[Tensor], Any]) -> Any:
    return do(tensor)


def dictionary(m: Do, x: Tensor) -> dict[str, Any]:
    return {"mean": m.conv(x).mean((2, 3)), "none": None, "input": x}


def attention(m: Do, x: Tensor) -> Tensor:
    n, length = x.shape[0], 36
    qkv = m.conv(x).flatten(2).transpose(1, 2).reshape(n, length, 2, 2).permute(2, 0, 3, 1).unsqueeze(-1)
    y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[0])
    return m.linear(y.transpose(1, 2).reshape(n, -1, 4))


MADE: dict[str, Callable[[Do, Tensor], Any]] = {
    "layers": lambda m, x: m.linear(F.gelu(m.conv(x)).mean((2, 3))),
    "attention": attention,
    "flat": lambda m, x: F.relu(m.conv(x)).flatten(1),
    "flat out of order": lambda m, x: m.conv(x).transpose(1, 2).flatten(1),
    "in place": lambda m, x: F.relu_(m.conv(x)).mul_(2).add_(m.conv(x)),
    "read after a write": lambda m, x: on(m.conv(x), lambda y: y.relu_() + y),
    "norm": lambda m, x: F.hardtanh_(m.norm(m.conv(x))),
    "dropout": lambda m, x: F.dropout(m.conv(x), 0.5, training=False),
    "types": lambda m, x: m.conv(x).double().to(torch.float32).float().contiguous(),
    "chunk": lambda m, x: m.conv(x).chunk(2, 1)[1],
    "unused": lambda m, x: (m.linear(x[:, 0, 0, :4]), m.conv(x))[1],
    "dictionary": dictionary,
    "rows": lambda m, x: m.conv(x).mean((2, 3)) + torch.ones(x.shape[0], 4),
    "upsampled": lambda m, x: F.interpolate(m.conv(x), scale_factor=2.0, mode="nearest"),
    "several": lambda m, x: m.conv(x).flatten(1).max(1),
}
LEFT: dict[str, Callable[[Do, Tensor], Any]] = {
    "a view is written": lambda m, x: on(m.conv(x), lambda y: (y[:, 0].zero_(), y)[1]),
    "what a view reads is written": lambda m, x: on(m.conv(x), lambda y: (y[:, 0], y.relu_())[0]),
    "a handed on tensor is written": lambda m, x: on(m.conv(x), lambda y: (y.flatten(1), y.relu_())[0]),
    "a reshaped tensor is written": lambda m, x: on(m.conv(x), lambda y: (y.reshape(len(x), -1), y.relu_())[0]),
    "the input is handed on and written": lambda m, x: m.conv(x.contiguous().mul_(2)),
    "the input is written": lambda m, x: m.conv(x.mul_(2)),
    "a buffer is written": lambda m, x: (m.count.add_(1), m.conv(x))[1],
    "a result of another type": lambda m, x: torch.zeros(x.shape[0], 4, dtype=torch.half).add_(m.conv(x).mean((2, 3))),
    "a graph in the graph": lambda m, x: torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y * 3, (m.conv(x),)),
    "a constant before the buffers of a part": lambda m, x: m.norm(m.conv(x)) * torch.tensor(2.0),
    "a computed size": lambda m, x: m.conv(x).reshape(x.shape[0] * 2, -1),
}


def program_of(do: Callable[[Do, Tensor], Any]) -> ExportedProgram:
    torch.manual_seed(0)
    return trace_program(Do(do).eval(), (torch.randn(2, 3, 8, 8),), (1, 5))[0]


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.tensor([1.0, 2.0]) + torch.tensor(0.5).detach()


def described(program: ExportedProgram) -> list[Any]:
    """Everything but names: places of nodes in place of them."""
    forget_layouts(program)
    places: dict[fx.Node, str] = {}
    lines: list[Any] = []
    for node in program.graph.nodes:
        places[node] = f"%{len(places)}"
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda argument: places[argument])
        value = node.meta.get("val")
        what = [
            (str(part.dtype), str(part.shape))
            for part in (value if isinstance(value, tuple) else [value])
            if isinstance(part, Tensor)
        ]
        path = list(node.meta.get("nn_module_stack", {}))[-1:] if isinstance(value, Tensor) else None
        lines.append(
            (node.op, node.name if node.op == "placeholder" else str(node.target), repr(arguments), what, path)
        )
    names = {node.name: place for node, place in places.items()}
    signature = program.graph_signature
    lines.append([(spec.kind, names.get(getattr(spec.arg, "name", ""))) for spec in signature.output_specs])
    return [*lines, [(spec.kind, getattr(spec.arg, "name", ""), spec.target) for spec in signature.input_specs]]


@pytest.mark.parametrize("do", MADE.values(), ids=MADE)
def test_made_node_by_node_is_what_a_second_trace_gives(do):
    program = program_of(do)
    with torch.no_grad():
        made = without_retracing(program)
        assert made is not None
        assert described(made) == described(program.run_decompositions({}))


BY_TABLE: dict[str, Callable[[Do, Tensor], Any]] = {
    **MADE,
    "a hard activation": lambda m, x: F.hardswish(m.conv(x)),
    "an activation of several operators": lambda m, x: F.mish(F.silu(F.elu(m.conv(x)))),
    "a group norm": lambda m, x: F.group_norm(m.conv(x), 2),
    "a filled mask": lambda m, x: m.conv(x).masked_fill(m.conv(x) > 0, -1.0),
    "new tensors": lambda m, x: m.conv(x) + torch.arange(6.0) * torch.full((6,), 2.0),
    "several results": lambda m, x: torch.var_mean(m.conv(x), 1)[0],
    "a split": lambda m, x: m.conv(x).split(2, 1)[0],
    "a stack": lambda m, x: torch.stack([m.conv(x), m.conv(x)], 1),
}


@functools.cache
def default_table() -> dict[Any, Any]:
    return torch.export.default_decompositions().materialize()


@pytest.mark.parametrize("do", BY_TABLE.values(), ids=BY_TABLE)
def test_operators_of_a_table_become_what_a_second_trace_makes_of_them(do):
    table = default_table()
    with torch.no_grad():
        program = program_of(do).run_decompositions({})
        made = without_retracing(program, table)
        assert made is None or described(made) == described(program.run_decompositions(table))


def test_constants_are_copied_once():
    program = trace_program(Scaled(4, 2).eval(), (torch.randn(2, 4),), (1, 5))[0]
    with torch.no_grad():
        made = without_retracing(program)
        assert made is not None
        assert described(made) == described(program.run_decompositions({}))


@pytest.mark.parametrize("do", LEFT.values(), ids=LEFT)
def test_what_is_not_sure_is_left_to_torch(do):
    with torch.no_grad():
        assert without_retracing(program_of(do)) is None


def test_names_count_the_operators_of_a_kind():
    with torch.no_grad():
        made = without_retracing(program_of(lambda m, x: m.conv(x) + m.conv(x) + 1))
    assert made is not None
    assert [node.name for node in made.graph.nodes if node.op == "call_function"] == [
        "conv2d",
        "conv2d_1",
        "add",
        "add_1",
    ]
