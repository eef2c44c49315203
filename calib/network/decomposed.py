"""Bring a traced program into the operators that calibration and export know, without a second trace."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from calib.network.nodes import OPERATOR
from calib.network.operators import RETRACED, REWRITTEN, UnsureError, functional_operator, is_taken_apart, may_alias
from calib.network.recorded import Recorder, Table, fake_mode, sizes_stay_free

_ATEN = torch.ops.aten
_GUARDS = {_ATEN._assert_tensor_metadata.default}  # noqa: SLF001 - the name of the operator


def without_retracing(program: ExportedProgram, table: Table = MappingProxyType({})) -> ExportedProgram | None:
    """Return what `program.run_decompositions(table)` gives, made node by node; None where it has something that only
    another trace tells. `table`: operator -> what computes it by others.

    A second trace takes longer than the first one, and changes few nodes:

    1. An operator that torch keeps stays as it is.
    2. One of the table, or that torch always takes apart (`flatten`, `to`, `chunk`), is run on the fake tensors of the
       trace; what it calls takes its place.
    3. An in-place operator becomes the functional one where nothing else shares the memory that it writes.
    4. Left to torch: graphs in graphs, numbers computed from tensors or sizes, changed inputs, parameters and views,
       operators of other libraries.

    Names count the operators of each kind. Those of a second trace count its arithmetic on sizes too.
    """
    try:
        return _Rewriting(program, table).result()
    except UnsureError:
        return None


class _Rewriting:
    def __init__(self, program: ExportedProgram, table: Table) -> None:
        self._program, self._table = program, table
        self._graph = fx.Graph()
        self._values: dict[fx.Node, Any] = {}
        """Node of the program -> what stands for it: a node, or a list of them where it has several results."""
        self._memory: dict[fx.Node, set[fx.Node]] = {}
        """Nodes of the program that may share their memory with a node, itself included."""
        self._sizes: dict[str, fx.Node] = {}
        """Free size -> the node that reads it from an input."""

    def result(self) -> ExportedProgram:
        _check_order(self._program.graph_signature.input_specs)
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._values[node], self._memory[node] = self._copied(node), {node}
            elif node.op == "output":
                self._output(node)
            elif node.op == "call_function":
                self._call(node)
            else:
                raise UnsureError
        self._graph.eliminate_dead_code()
        return self._assembled()

    def _copied(self, node: fx.Node) -> fx.Node:
        copied = self._graph.node_copy(node, self._one)
        copied.name = node.name
        return copied

    def _one(self, node: fx.Node) -> fx.Node:
        value = self._values[node]
        if not isinstance(value, fx.Node):
            raise UnsureError
        return value

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if target is operator.getitem:
            source, index = node.args
            self._values[node] = self._values[source][index]  # type: ignore[index]
            self._share(node, source)  # type: ignore[arg-type]
            return
        if not isinstance(target, OPERATOR) or target.namespace != "aten" or target in RETRACED:
            raise UnsureError
        if target is _ATEN.sym_size.int:
            self._values[node] = self._size(node.meta["val"])
        elif target in _GUARDS:
            self._record(node, target)
        elif target is _ATEN.detach_.default:
            source = node.args[0]
            self._values[node] = self._values[source]  # type: ignore[index]
            self._share(node, source)  # type: ignore[arg-type]
        elif target in self._table:
            self._record(node, target)
            self._share(node, *node.all_input_nodes)
        elif target in REWRITTEN:
            self._record(node, REWRITTEN[target])
            self._memory[node] = {node}
        elif target._schema.is_mutable:  # noqa: SLF001 - no other way to it
            self._write(node)
        elif is_taken_apart(target):
            self._record(node, target)
            self._share(node, *node.all_input_nodes)
        else:
            self._keep(node, target, node.args, node.kwargs, node.meta["val"])
            if may_alias(target):
                self._share(node, *node.all_input_nodes)
            else:
                self._memory[node] = {node}

    def _share(self, node: fx.Node, *sources: fx.Node) -> None:
        """Note that a node may lie in the memory of any of the others."""
        together = {node}.union(*(self._memory.get(source, ()) for source in sources))
        for member in together:
            self._memory[member] = together

    def _keep(self, node: fx.Node, target: Any, args: Any, kwargs: Any, value: Any) -> None:
        self._values[node] = self._add(
            node, target, fx.node.map_arg(args, self._one), fx.node.map_arg(kwargs, self._one), value
        )

    def _add(self, origin: fx.Node, target: Any, args: Any, kwargs: Any, value: Any) -> Any:
        """Add a call, and the calls that take its results apart; `value` is what it gives on fake tensors."""
        made = self._graph.create_node(
            "call_function", target, args, kwargs, name=getattr(target, "overloadpacket", target).__name__
        )
        made.meta = {**origin.meta, "val": value}
        made.meta.pop("tensor_meta", None)
        if isinstance(value, Tensor) or value is None:
            return made
        if not isinstance(value, (list, tuple)):
            raise UnsureError
        return [self._add(origin, operator.getitem, (made, index), {}, part) for index, part in enumerate(value)]

    def _size(self, size: int | torch.SymInt) -> fx.Node:
        """Return the node that reads a free size; other sizes are computed, which is left to torch."""
        name = str(size)
        if name not in self._sizes:
            inputs = list(self._program.graph.find_nodes(op="placeholder"))
            readers = [
                node
                for node in inputs
                if isinstance(node.meta.get("val"), Tensor)
                and node.meta["val"].dim()
                and isinstance(node.meta["val"].shape[0], torch.SymInt)
                and str(node.meta["val"].shape[0]) == name
            ]
            if not readers or self._sizes:  # the order of several is torch's
                raise UnsureError
            with self._graph.inserting_after(self._values[inputs[-1]]):
                made = self._graph.create_node(
                    "call_function", _ATEN.sym_size.int, (self._values[readers[-1]], 0), name="sym_size_int"
                )
            made.meta["val"] = size
            self._sizes[name] = made
        return self._sizes[name]

    def _write(self, node: fx.Node) -> None:
        """Put the functional operator in place of one that writes into its first operand."""
        target, written = node.target, node.args[0]
        assert isinstance(target, OPERATOR)
        functional = functional_operator(target)
        if functional is None or not isinstance(written, fx.Node):
            raise UnsureError
        before, together = self._values[written], self._memory[written]
        if any(member.op == "placeholder" or self._values[member] is not before for member in together):
            raise UnsureError  # an input changes, or a view does too
        self._record(node, functional)
        made, value = self._values[node], self._one(node).meta["val"]
        kept = node.meta["val"]
        if made is before or (value.dtype, list(map(str, value.shape))) != (kept.dtype, list(map(str, kept.shape))):
            raise UnsureError
        self._values.update(dict.fromkeys(together, made))
        self._memory[node] = {node}
        self._share(node, written)

    def _record(self, node: fx.Node, function: Callable[..., Any]) -> None:
        """Run a function on the fake tensors of a node's arguments, and add what it calls."""
        known: dict[int, fx.Node] = {}

        def fake(argument: fx.Node) -> Any:
            made = self._one(argument)
            value = made.meta["val"]
            if isinstance(value, Tensor) and known.setdefault(id(value), made) is not made:
                raise UnsureError
            return value

        args, kwargs = fx.node.map_arg(node.args, fake), fx.node.map_arg(node.kwargs, fake)
        try:
            mode = fake_mode(self._program)
            with sizes_stay_free(mode), mode, Recorder(self._table) as recorder:
                result = function(*args, **kwargs)
        except Exception as error:  # the trace says it in its own words
            raise UnsureError from error
        for target, given, named, value in recorder.calls:
            made = self._add(node, target, self._read(given, known), self._read(named, known), value)
            for part, at in zip(_leaves(value), _leaves(made), strict=True):
                known[id(part)] = at
        leaves = _leaves(result) if result is not None else []
        if any(id(part) not in known for part in leaves):
            raise UnsureError
        found = [known[id(part)] for part in leaves]
        self._values[node] = found if len(found) != 1 or isinstance(result, (list, tuple)) else found[0]

    def _read(self, arguments: Any, known: Mapping[int, fx.Node]) -> Any:
        """Return arguments with nodes in place of fake tensors and free sizes."""

        def read(part: Any) -> Any:
            if isinstance(part, Tensor):
                if id(part) not in known:
                    raise UnsureError
                return known[id(part)]
            return self._size(part) if isinstance(part, torch.SymInt) else _plain(part)

        return pytree.tree_map(read, arguments)

    def _output(self, node: fx.Node) -> None:
        made = self._graph.output(fx.node.map_arg(node.args[0], self._one))
        made.meta = dict(node.meta)

    def _assembled(self) -> ExportedProgram:
        program, signature = self._program, self._program.graph_signature
        (output,) = self._graph.find_nodes(op="output")
        specs = []
        for spec, value in zip(signature.output_specs, output.args[0], strict=True):
            if spec.kind != OutputKind.USER_OUTPUT:
                raise UnsureError
            if isinstance(value, fx.Node) != isinstance(spec.arg, TensorArgument):
                raise UnsureError
            arg = TensorArgument(value.name) if isinstance(value, fx.Node) else spec.arg
            specs.append(type(spec)(spec.kind, arg, spec.target))
        return ExportedProgram(
            root=program.graph_module,
            graph=self._graph,
            graph_signature=type(signature)(list(signature.input_specs), specs),
            state_dict=program.state_dict,
            range_constraints=dict(program.range_constraints),
            module_call_graph=program.module_call_graph,
            example_inputs=program.example_inputs,
            constants=program.constants,
        )


def _check_order(specs: Sequence[InputSpec]) -> None:
    """Refuse parameters, buffers and constants that a second trace gives in another order: first the parameters, then
    all others, both by the modules that hold them.
    """
    stored = [spec for spec in specs if spec.kind != InputKind.USER_INPUT]
    first: dict[tuple[str, ...], int] = {}
    keys = []
    for spec in stored:
        path = str(spec.target).split(".")[:-1]
        place = [first.setdefault(tuple(path[: end + 1]), len(first)) for end in range(len(path))]
        keys.append((spec.kind != InputKind.PARAMETER, place))
    known = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}
    if keys != sorted(keys) or not known.issuperset(spec.kind for spec in stored):
        raise UnsureError


def _leaves(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _plain(part: Any) -> Any:
    if isinstance(part, (torch.SymFloat, torch.SymBool)):
        raise UnsureError
    return part
