"""The model as a graph of tensors: one trace that calibration, the search and the export all share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from calib.network.batch_range import largest_batch
from calib.network.equal import merge_equal
from calib.network.execution import NO_EDITS, Edits, Execution, Observe
from calib.network.nodes import OPERATOR
from calib.network.norms import leave_out_neutral
from calib.network.products import Arrangement, write_as_linear
from calib.network.spelled_attention import spell_out_attention
from calib.network.tracing import export_program
from calib.sizes import InputSizes, shapes_of_one, sizes_of


class TracedModel:
    """A float model as a functional graph of ATen operators, with the module paths it came from.

    1. Traced by `torch.export`, so that whatever runs here can also be exported to ONNX, node by node.
    2. The graph holds no in-place operator: `out += skip` has become an add with a name of its own.
    3. The batch dimension is dynamic; where the model does not allow it, the batch size of the example is fixed and
       `dynamic_batch` is False.
    4. A change of a buffer or of an input that `forward` makes in passing is left out.
    5. Parameters that share their memory are one tensor, read from one node.
    6. Whatever multiplies by one parameter is a `linear`; `arranged` says how the weight `[out, in]` in `state` is made
       of the parameter where that is stored in another way (`write_as_linear`).
    7. A BatchNorm that gives what it is given is left out.
    8. With `attention`, fused attention is written as two products and a softmax (`spell_out_attention`).

    A pickled copy runs, and can be planned for, like the original. It has no `module`, `example` or `program`, and its
    nodes have no `meta`: another process may not be able to import the classes of the model. A copy whose tensors were
    loaded onto another device makes its constants there.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Sequence[Tensor],
        sizes: Iterable[int] = (),
        *,
        free: bool = True,
        inputs: InputSizes | None = None,
        attention: bool = False,
    ) -> None:
        """Trace `model` on `example`, the positional inputs of one batch: of two samples or more, unless its size is
        the only one.

        `sizes` are the numbers of samples that will run at once; a trace that does not hold for all of them is made
        again for the size of the example alone, as without `free`. `inputs` says which other sizes the inputs have,
        None for those of the example alone.
        """
        self.module = model
        self.attention = attention
        self.example = tuple(example)
        self.sizes = inputs or sizes_of([shapes_of_one([tensor.shape for tensor in self.example])], ())
        self.program, self.dynamic_batch = export_program(model, self.example, sizes, free=free, inputs=inputs)
        if self.dynamic_batch:
            self.sizes = replace(self.sizes, samples=largest_batch(self.program))
        self.graph: fx.Graph = self.program.graph
        signature = self.program.graph_signature
        self.parameter_names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = {**signature.inputs_to_lifted_tensor_constants}
        stored = {**self.program.constants, **self.program.state_dict}
        names = {**self.parameter_names, **constants}
        _merge_shared(self.graph, {node: stored[name] for node, name in names.items()})
        with torch.no_grad():
            self.arranged: dict[str, Arrangement] = write_as_linear(self.program, signature.inputs_to_parameters)
            if attention:
                spell_out_attention(self.program)
        stored = {**self.program.constants, **self.program.state_dict}
        self.state: dict[str, Tensor] = {node: stored[name].detach() for node, name in names.items()}
        leave_out_neutral(self.program, self.state)
        merge_equal(self.program)
        self.inputs: tuple[str, ...] = tuple(name for name in signature.user_inputs if isinstance(name, str))
        self.out_spec: pytree.TreeSpec = self.program.call_spec.out_spec
        self._index()

    def _index(self) -> None:
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self.steps: list[fx.Node] = [node for node in self.graph.nodes if node.op == "call_function"]
        self.output: fx.Node = next(node for node in self.graph.nodes if node.op == "output")
        self.last_uses = self._find_last_uses()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("dynamic_batch", "sizes", "parameter_names", "state", "inputs", "out_spec")
        return {
            **{name: getattr(self, name) for name in kept},
            "graph": [_Written.of(node) for node in self.graph.nodes],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.graph = fx.Graph()
        nodes: dict[str, fx.Node] = {}
        device = next((tensor.device for tensor in self.state.values()), torch.device("cpu"))
        for written in state["graph"]:
            nodes[written.name] = written.node(self.graph, nodes, device)
        self._index()

    def with_state(self, state: Mapping[str, Tensor]) -> TracedModel:
        """Return the same graph with other values of some parameters; `module` and `program` keep theirs."""
        other = object.__new__(TracedModel)
        other.__dict__.update(self.__dict__, state={**self.state, **state})
        return other

    def run(
        self,
        inputs: Sequence[Tensor],
        edits: Edits = NO_EDITS,
        observe: Observe | None = None,
        *,
        gradient: bool = False,
        order: torch.memory_format = torch.contiguous_format,
    ) -> Any:
        """Run the graph on one batch and return what the model's `forward` would return.

        `observe(name, tensor)` sees every tensor that a node makes, and the inputs. With `gradient` the run is recorded
        for backpropagation to whatever in the edits asks for it. `order` is that of the inputs in memory.
        """
        with torch.set_grad_enabled(gradient):
            return Execution(self, inputs, edits, observe, order).advance(edits, observe=observe).output()

    def elements_of_one(self, value: Tensor) -> int:
        """Return how many elements one sample of the value of a node (`meta["val"]`) has, where inputs have their usual
        sizes.

        Use this instead of `int(size)` on a size that is free: torch then fixes that size to the example's, in the
        traced model and in whatever is exported from it.
        """
        whole = math.prod(self._of_one(size) for size in value.shape)
        counts = any(symbol in self._counting for size in value.shape for symbol in _symbols(size))
        return whole if counts else math.prod(self._of_one(size) for size in value.shape[1:])

    def _of_one(self, size: int | torch.SymInt) -> int:
        """A size for a batch of one sample."""
        if not isinstance(size, torch.SymInt):
            return size
        expression = size.node.expr
        return int(expression.subs({symbol: self._usual.get(symbol, 1) for symbol in expression.free_symbols}))

    @cached_property
    def _counting(self) -> set[Any]:
        """Torch's symbols for the number of samples."""
        return {symbol for name in self.inputs for symbol in _symbols(self.nodes[name].meta["val"].shape[0])}

    @cached_property
    def _usual(self) -> dict[Any, int]:
        """The usual sizes of other free axes, by torch's symbol."""
        return {
            size.node.expr: shape[axis]
            for name, shape in zip(self.inputs, self.sizes.usual, strict=True)
            for axis, size in enumerate(self.nodes[name].meta["val"].shape[1:])
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol
        }

    def producer(self, tensor: str) -> fx.Node:
        """Return the node that makes a tensor."""
        return self.nodes[tensor]

    def consumers(self, tensor: str) -> tuple[fx.Node, ...]:
        """Return the nodes that read a tensor, in graph order."""
        return tuple(self.nodes[tensor].users)

    def _find_last_uses(self) -> dict[str, list[str]]:
        last: dict[str, str] = {}
        for node in self.steps:
            for argument in node.all_input_nodes:
                last[argument.name] = node.name
        for argument in self.output.all_input_nodes:
            last.pop(argument.name, None)
        dead: dict[str, list[str]] = {}
        for tensor, node_name in last.items():
            if tensor not in self.state:
                dead.setdefault(node_name, []).append(tensor)
        return dead


@dataclass(frozen=True)
class _Named:
    """What takes the place of a node of the graph, or of an operator of torch, which pickle does not know."""

    name: str


def _named(argument: fx.Node) -> Any:
    return _Named(argument.name)


@dataclass(frozen=True)
class _Written:
    """One node as plain values."""

    name: str
    op: str
    target: Any
    args: Any
    kwargs: Any

    @classmethod
    def of(cls, node: fx.Node) -> _Written:
        target = _Named(str(node.target)) if isinstance(node.target, OPERATOR) else node.target
        args, kwargs = (fx.node.map_arg(part, _named) for part in (node.args, node.kwargs))
        return cls(node.name, node.op, target, args, kwargs)

    def node(self, graph: fx.Graph, nodes: Mapping[str, fx.Node], device: torch.device) -> fx.Node:
        """Add the node to a graph that holds those before it; what it makes, it makes on `device`."""

        def read(argument: Any) -> Any:
            if isinstance(argument, torch.device):
                return device
            return nodes[argument.name] if isinstance(argument, _Named) else argument

        target = _operator(self.target.name) if isinstance(self.target, _Named) else self.target
        args, kwargs = fx.node.map_aggregate(self.args, read), fx.node.map_aggregate(self.kwargs, read)
        node = graph.create_node(self.op, target, args, kwargs, name=self.name)
        node.name = self.name  # a graph gives no node the name of a builtin of Python by itself, as torch.export does
        return node


def _operator(name: str) -> Any:
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _symbols(size: int | torch.SymInt) -> set[Any]:
    return size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()


def _merge_shared(graph: fx.Graph, state: Mapping[str, Tensor]) -> None:
    first: dict[tuple[int, torch.Size, tuple[int, ...]], fx.Node] = {}
    for node in graph.find_nodes(op="placeholder"):
        tensor = state.get(node.name)
        if tensor is not None and tensor.numel():
            kept = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), node)
            if kept is not node:
                node.replace_all_uses_with(kept)
