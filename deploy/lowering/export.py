"""Export the float model to ONNX, with nodes named by module path and values by the tensor of the traced graph."""

from __future__ import annotations

import json
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from calib.errors import UserError
from calib.network.graph import TracedModel
from calib.network.units import Unit
from deploy.lowering.onnx_files import save_model

OPSET = 21
ALIASES = "smpq.aliases"
"""Model metadata: JSON of traced tensor -> ONNX value, for tensors that the exporter found to be the same value."""
FINGERPRINT = "smpq.fingerprint"
"""Model metadata: the key of the fingerprint of the run that exported it."""

_MULTIPLIES = {"Conv", "Gemm", "MatMul"}
_MAY_BE_IDENTITY = {
    "alias", "clone", "contiguous", "detach", "dropout", "expand", "_to_copy", "to", "pad", "constant_pad_nd",
    "permute", "reshape",
    "slice", "transpose", "view", "_unsafe_view", "lift_fresh_copy", "unflatten",
}  # fmt: skip
_FX_NAME = re.compile(r"%(\S+) :")


def export_float(traced: TracedModel, units: Sequence[Unit], path: Path, fingerprint: str = "") -> None:
    """Write the float model as ONNX, opset 21, weights float32.

    1. The node that multiplies by a unit's weight (Conv, Gemm, MatMul) is named by the unit's path; further calls
       `path#2`, ...
    2. A value that is a tensor of `traced` has that tensor's name. Where the exporter dropped a tensor because another
       one is equal to it, the model's metadata (`ALIASES`) says which. The parts of a split, and what the exporter made
       up, keep its names.
    3. Other nodes are named `<module path>/<operator>`, made unique by `_2`, ...
    4. A dynamic batch stays dynamic and is called `batch`. No metadata that holds source paths is left.
    5. Every unit's weight is compared with the initialiser found; a difference is an error, never a guess.
    6. The model's metadata holds `fingerprint` (`FINGERPRINT`), which every model that is made from this one keeps.

    Raises UserError when torch cannot express the model in ONNX, with the operator's name.
    """
    program = _export(traced)
    assert program.exported_program is not None  # it was exported from one
    names = _Names(traced, program.exported_program.graph)
    model: ir.Model = program.model
    exporter_names = {node: _exporter_name(node) for node in model.graph}
    produced = {name for name in (value.name for node in model.graph for value in node.outputs) if name}
    resolved = names.resolve(produced)
    units_by_node = _unit_nodes(model, traced, units, names, exporter_names)
    _name_values(model, traced, resolved)
    _name_nodes(model, traced, units_by_node, {node: names.traced_name(name) for node, name in exporter_names.items()})
    _clear(model)
    _name_batch(model)
    aliases = {tensor: value for tensor, value in names.final_names(resolved).items() if tensor != value}
    model.metadata_props[ALIASES] = json.dumps(aliases, sort_keys=True)
    if fingerprint:
        model.metadata_props[FINGERPRINT] = fingerprint
    try:
        save_model(model, path)
    except ValueError as error:  # no pass of ours has seen it yet: this is what torch's exporter makes of the model
        raise UserError(
            f"torch's exporter cannot express this model ({str(error).splitlines()[0]}): write in another way what "
            "depends on the number of "
            "samples, as squeeze() of the first dimension does"
        ) from error


def read_aliases(model: ir.Model) -> dict[str, str]:
    """Return traced tensor -> ONNX value for the tensors that go by another name."""
    return dict(json.loads(model.metadata_props.get(ALIASES, "{}")))


def call_name(path: str, call: int) -> str:
    """Return the name of the ONNX node of one call, counted from 0, of the unit at `path`."""
    return path if call == 0 else f"{path}#{call + 1}"


def _export(traced: TracedModel) -> torch.onnx.ONNXProgram:
    assert not traced.dynamic_batch or _batch_is_free(traced), "somebody took int() of a free size: see elements_of_one"
    with _quiet():
        try:
            program = torch.onnx.export(traced.program, dynamo=True, opset_version=OPSET, verbose=False)
        except Exception as error:
            text = f"{error}\n{error.__cause__ or ''}"
            operators = list(dict.fromkeys(re.findall(r"(?:aten|prims|torchvision|torch\.ops)[.:]+[\w.:]+", text)))
            what = f"the operator {operators[0]}" if operators else "the model"
            reason = next(
                (line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()),
                type(error).__name__,
            )
            raise UserError(f"torch cannot export {what} to ONNX opset {OPSET}: {reason}") from error
    if program is None:
        raise UserError(f"torch returned no ONNX model at opset {OPSET}")
    return program


def _batch_is_free(traced: TracedModel) -> bool:
    sizes = [traced.nodes[name].meta["val"].shape[0] for name in traced.inputs]
    return all(isinstance(size, torch.SymInt) and size.node.expr.free_symbols for size in sizes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's advice about optional packages and its own deprecations out of the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Names:
    """Which tensor of the traced graph each node of the exporter's own graph computes.

    The exporter decomposes the program once more, into a copy whose counters start again: `add_30` may become `add_2`
    there. Each copied node carries the chain of nodes it came from, with the identity of their graphs; the one in our
    graph decides.
    """

    def __init__(self, traced: TracedModel, exported: fx.Graph) -> None:
        self._traced = traced
        self._exported = exported
        self._origin = {node.name: self._find_origin(node) for node in exported.nodes}
        self._computed_by: dict[str, fx.Node] = {}
        for node in exported.nodes:
            tensor = self._origin[node.name]
            if tensor is not None and isinstance(node.meta.get("val"), torch.Tensor) and self._leaves(node, tensor):
                self._computed_by[tensor] = node

    def traced_name(self, exporter_name: str | None) -> str | None:
        """Return the traced node that a node of the exporter's graph belongs to."""
        return self._origin.get(exporter_name) if exporter_name is not None else None

    def resolve(self, produced: set[str]) -> dict[str, str]:
        """Return traced tensor -> name of the ONNX value, before renaming; tensors without one are left out."""
        values: dict[str, str] = {}
        seen: dict[str, str] = {}
        for node in self._exported.nodes:
            if node.op == "placeholder":
                values[node.name] = node.name
            if node.op != "call_function":
                continue
            arguments = fx.node.map_arg(
                (node.args, node.kwargs), lambda argument: values.get(argument.name, argument.name)
            )
            computation = f"{node.target} {arguments}"
            source = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
            if node.name in produced:
                values[node.name] = node.name
            elif computation in seen:
                values[node.name] = seen[computation]
            elif source is not None and source.name in values and _may_be_identity(node, source):
                values[node.name] = values[source.name]
            if node.name in values:
                seen.setdefault(computation, values[node.name])
        computed = {tensor: values[node.name] for tensor, node in self._computed_by.items() if node.name in values}
        return {name: name for name in self._traced.inputs} | computed

    def final_names(self, resolved: Mapping[str, str]) -> dict[str, str]:
        """Return traced tensor -> name of the ONNX value after renaming: the first tensor of a value names it."""
        first: dict[str, str] = {}
        for tensor, value in self._in_order(resolved):
            first.setdefault(value, tensor)
        return {tensor: first[value] for tensor, value in resolved.items()}

    def _in_order(self, resolved: Mapping[str, str]) -> list[tuple[str, str]]:
        return [(name, resolved[name]) for name in self._traced.nodes if name in resolved]

    def _find_origin(self, node: fx.Node) -> str | None:
        pending = list(node.meta.get("from_node") or [])
        while pending:
            source = pending.pop(0)
            if source.graph_id == id(self._traced.graph) and source.name in self._traced.nodes:
                found = self._traced.nodes[source.name]
                if found.op == "placeholder" or node.op != "call_function":
                    return None
                return self._one_result(node, found)
            pending += list(source.from_node or [])
        return None

    def _one_result(self, node: fx.Node, found: fx.Node) -> str:
        """Where the traced node has several results, the traced node that takes the one this node takes."""
        if isinstance(found.meta.get("val"), (tuple, list)) and node.target is operator.getitem:
            for user in found.users:
                if user.target is operator.getitem and user.args[1] == node.args[1]:
                    return user.name
        return found.name

    def _leaves(self, node: fx.Node, tensor: str) -> bool:
        """Whether the node's value is read outside of the traced node's own decomposition, and looks like its
        tensor.
        """
        value = self._traced.nodes[tensor].meta.get("val")
        if (
            not isinstance(value, torch.Tensor)
            or value.dim() != node.meta["val"].dim()
            or value.dtype != node.meta["val"].dtype
        ):
            return False
        return not node.users or any(self._origin_of_user(user) != tensor for user in node.users)

    def _origin_of_user(self, user: fx.Node) -> str | None:
        return self._origin.get(user.name) or self._find_origin(user)


def _may_be_identity(node: fx.Node, source: fx.Node) -> bool:
    target = node.target
    name = str(target.overloadpacket.__name__) if isinstance(target, torch._ops.OpOverload) else ""  # noqa: SLF001
    value, before = node.meta.get("val"), source.meta.get("val")
    if name not in _MAY_BE_IDENTITY or not isinstance(value, torch.Tensor) or not isinstance(before, torch.Tensor):
        return False
    return value.dtype == before.dtype and [str(size) for size in value.shape] == [str(size) for size in before.shape]


def _exporter_name(node: ir.Node) -> str | None:
    match = _FX_NAME.match(node.metadata_props.get("pkg.torch.onnx.fx_node", ""))
    return match[1] if match else None


def _unit_nodes(
    model: ir.Model,
    traced: TracedModel,
    units: Sequence[Unit],
    names: _Names,
    exporter_names: Mapping[ir.Node, str | None],
) -> dict[ir.Node, str]:
    """Return the name of every node that multiplies by a unit's weight."""
    by_call: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        tensor = names.traced_name(exporter_names[node])
        if node.op_type in _MULTIPLIES and tensor is not None:
            by_call.setdefault(tensor, []).append(node)
    found: dict[ir.Node, str] = {}
    for unit in units:
        weight = traced.state[unit.weight].detach().cpu().numpy()
        own = []
        for index, call in enumerate(unit.calls):
            nodes = [node for node in by_call.get(call, ()) if _holds(node, weight)]
            if len(nodes) == 1:
                own.append(nodes[0])
                found[nodes[0]] = call_name(unit.path, index)
            elif len(nodes) > 1 or by_call.get(call):
                raise UserError(
                    f"{unit.path}: the exported model multiplies by something else than this layer's weight; "
                    "it cannot be quantised by name. Leave it out or write it as a plain layer"
                )
        # Equal calls on an equal input are one node in the exported graph; the one that is left stands for them.
        if not own:
            raise UserError(
                f"{unit.path}: the exported model has no Conv, Gemm or MatMul for this layer; it cannot be quantised "
                "by name"
            )
    return found


def _holds(node: ir.Node, weight: np.ndarray[Any, Any]) -> bool:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or value.const_value is None:
        return False
    stored = value.const_value.numpy()
    same = stored.shape == weight.shape and np.array_equal(stored, weight)
    return bool(same or (weight.ndim == 2 and stored.shape == weight.T.shape and np.array_equal(stored, weight.T)))


def _name_values(model: ir.Model, traced: TracedModel, resolved: Mapping[str, str]) -> None:
    """Rename in two steps: the exporter's `add_2` may be our `add_30`, while another tensor of ours is called `add_2`.

    Inputs keep the traced names whatever the exporter made of them: an input that is an output as well, it calls
    `x_orig`.
    """
    wanted: dict[str, str] = {}
    for tensor, value_name in resolved.items():
        wanted.setdefault(value_name, tensor)
    wanted |= {str(value.name): name for value, name in zip(model.graph.inputs, traced.inputs, strict=True)}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    old_names = [str(value.name) for value in values]
    for index, value in enumerate(values):
        value.name = f"__renamed_{index}"
    taken = {wanted[old] for old in old_names if old in wanted} | set(model.graph.initializers)
    named: set[str] = set()
    for value, old in zip(values, old_names, strict=True):
        ours = wanted.get(old)
        value.name = ours if ours is not None and ours not in named else unique_name(old, taken)
        named.add(str(value.name))
        taken.add(str(value.name))


def _name_nodes(
    model: ir.Model,
    traced: TracedModel,
    units_by_node: Mapping[ir.Node, str],
    traced_names: Mapping[ir.Node, str | None],
) -> None:
    taken = set(units_by_node.values())
    for node in model.graph:
        if node in units_by_node:
            node.name = units_by_node[node]
            continue
        tensor = traced_names[node]
        path = traced.module_path(traced.nodes[tensor]) if tensor is not None else ""
        node.name = unique_name(f"{path}/{node.op_type}" if path else node.op_type, taken)
        taken.add(node.name)


def unique_name(name: str, taken: set[str]) -> str:
    """Return `name`, or `name_2`, `name_3`, ... when it is taken."""
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _clear(model: ir.Model) -> None:
    """Remove stack traces and comments: they hold the paths of the machine that exported."""
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None


def _name_batch(model: ir.Model) -> None:
    symbols = {
        size.value
        for value in model.graph.inputs
        if value.shape
        for size in value.shape[:1]
        if isinstance(size, ir.SymbolicDim)
    }
    names = {
        symbol: "batch" if index == 0 else f"batch_{index + 1}"
        for index, symbol in enumerate(sorted(filter(None, symbols)))
    }
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in (*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    ir.SymbolicDim(pattern.sub(lambda match: names[match[0]], size.value))
                    if isinstance(size, ir.SymbolicDim) and size.value
                    else size
                    for size in value.shape
                ]
            )
