"""Export the float model to ONNX, with nodes named by module path and values by the tensor of the traced graph."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from calib.errors import UserError, first_line
from calib.network.graph import TracedModel
from calib.network.units import Unit
from calib.network.unwritten import unwritten_code
from deploy.lowering.exact_constants import only_zero_is_zero
from deploy.lowering.exportable import Exportable
from deploy.lowering.naming import call_names, name_axes, name_nodes, name_values
from deploy.lowering.onnx_files import save_model
from deploy.lowering.promotion import promotion_reads_the_graph
from deploy.lowering.traced_names import TracedNames

OPSET = 21
ALIASES = "smpq.aliases"
"""Model metadata: JSON of traced tensor -> ONNX value, for tensors that the exporter found to be the same value."""
ORIGINS = "smpq.origins"
"""Model metadata: JSON of ONNX value -> traced node that it is computed for, where that has another name or is unknown.
"""
FINGERPRINT = "smpq.fingerprint"
"""Model metadata: the key of the fingerprint of the run that exported it."""
SIZES = "smpq.sizes"
"""Model metadata: JSON of input -> least, usual and most sizes of one sample, where an axis besides the batch is free.
"""

_MULTIPLIES = {"Conv", "Gemm", "MatMul"}
_LOOKS_UP = {"Gather"}
_FX_NAME = re.compile(r"%(\S+) :")


def export_float(traced: TracedModel, units: Sequence[Unit], path: Path, fingerprint: str = "") -> None:
    """Write the float model as ONNX, opset 21, weights float32.

    1. The node that multiplies by a unit's weight (Conv, Gemm, MatMul) is named by the unit's path; further calls,
       and those that look up rows of it (Gather), `path#2`, ...
    2. A value that is a tensor of `traced` has that tensor's name. Where the exporter dropped a tensor because another
       one is equal to it, the model's metadata (`ALIASES`) says which. The parts of a split, and what the exporter made
       up, keep its names.
    3. Other nodes are named `<module path>/<operator>`, made unique by `_2`, ... The metadata says what the values of
       an operator that is written out into several are for (`ORIGINS`).
    4. A dynamic batch stays dynamic and is called `batch`, other free axes `<input>_<axis>`; the metadata says which
       sizes they may have (`SIZES`). No metadata that holds source paths is left.
    5. Every unit's weight is compared with the initialiser found; a difference is an error, never a guess.
    6. The model's metadata holds `fingerprint` (`FINGERPRINT`), which every model that is made from this one keeps.

    Raises UserError when torch cannot express the model in ONNX, with the operator's name.
    """
    program = _export(traced)
    assert program.exported_program is not None  # it was exported from one
    names = TracedNames(traced, program.exported_program.graph)
    model: ir.Model = program.model
    exporter_names = {node: _exporter_name(node) for node in model.graph}
    produced = {name for name in (value.name for node in model.graph for value in node.outputs) if name}
    resolved = names.resolve(produced)
    units_by_node = _unit_nodes(model, traced, units, names, exporter_names)
    name_values(model, traced, resolved)
    traced_names = {node: names.traced_name(name) for node, name in exporter_names.items()}
    name_nodes(model, traced, units_by_node, traced_names)
    _clear(model)
    name_axes(model)
    aliases = {tensor: value for tensor, value in names.final_names(resolved).items() if tensor != value}
    model.metadata_props[ALIASES] = json.dumps(aliases, sort_keys=True)
    origins = {value.name: name for node, name in traced_names.items() for value in node.outputs if value.name != name}
    model.metadata_props[ORIGINS] = json.dumps(origins, sort_keys=True)
    if fingerprint:
        model.metadata_props[FINGERPRINT] = fingerprint
    ranges = traced.sizes.ranges(traced.inputs)
    if ranges:
        model.metadata_props[SIZES] = json.dumps(ranges)
    try:
        save_model(model, path)
    except ValueError as error:  # no pass of ours has seen it yet: this is what torch's exporter makes of the model
        raise UserError(
            f"torch's exporter cannot express this model ({first_line(error)}): write in another way what "
            "depends on the number of "
            "samples, as squeeze() of the first dimension does"
        ) from error


def read_sizes(model: ir.Model) -> dict[str, list[list[int]]]:
    """Return the least, the usual and the most sizes of a sample of each input; nothing where no axis is free."""
    return dict(json.loads(model.metadata_props.get(SIZES, "{}")))


def read_origins(model: ir.Model) -> dict[str, str | None]:
    """Return ONNX value -> traced node that it is computed for, where that has another name or is unknown."""
    return dict(json.loads(model.metadata_props.get(ORIGINS, "{}")))


def read_aliases(model: ir.Model) -> dict[str, str]:
    """Return traced tensor -> ONNX value for the tensors that go by another name."""
    return dict(json.loads(model.metadata_props.get(ALIASES, "{}")))


def _export(traced: TracedModel) -> torch.onnx.ONNXProgram:
    assert not traced.dynamic_batch or _batch_is_free(traced), "somebody took int() of a free size: see elements_of_one"
    with _quiet(), promotion_reads_the_graph(), only_zero_is_zero():
        try:
            program = torch.onnx.export(
                Exportable.of(traced.program),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                custom_translation_table={torch.ops.prims.prod.default: _product},
            )
        except Exception as error:
            text = f"{error}\n{error.__cause__ or ''}"
            operators = list(dict.fromkeys(re.findall(r"(?:aten|prims|torchvision|torch\.ops)[.:]+[\w.:]+", text)))
            what = f"the operator {operators[0]}" if operators else "the model"
            raise UserError(f"torch cannot export {what} to ONNX opset {OPSET}: {_reason(error)}") from error
    if program is None:
        raise UserError(f"torch returned no ONNX model at opset {OPSET}")
    return program


def _product(tensor: Any, dims: Sequence[int], output_dtype: int = -1) -> Any:  # noqa: ARG001 - as the operator
    """The product over axes, which `cumprod` is taken apart to, and which torch's exporter has no function for."""
    from onnxscript import opset21

    axes: Any = opset21.Constant(value_ints=list(dims))
    return opset21.ReduceProd(tensor, axes, keepdims=0)


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost exception that says something: the outer ones point to its trace alone."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    if isinstance(chain[-1], TypeError) and "SymbolicTensor" in str(chain[-1]):
        return (
            "one of its arguments, as the groups of a convolution, depends on the number of samples or on another free "
            "size, and ONNX wants a number: write it in another way"
        )
    lines = (line.strip() for each in reversed(chain) for line in str(each).splitlines())
    return next((line for line in lines if line), type(chain[-1]).__name__)


def _batch_is_free(traced: TracedModel) -> bool:
    sizes = [traced.nodes[name].meta["val"].shape[0] for name in traced.inputs]
    return all(isinstance(size, torch.SymInt) and size.node.expr.free_symbols for size in sizes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's advice about optional packages, its own deprecations, and its log of what it then does in another
    way, with tracebacks, out of the user's terminal.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch._subclasses", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), unwritten_code():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _exporter_name(node: ir.Node) -> str | None:
    match = _FX_NAME.match(node.metadata_props.get("pkg.torch.onnx.fx_node", ""))
    return match[1] if match else None


def _unit_nodes(
    model: ir.Model,
    traced: TracedModel,
    units: Sequence[Unit],
    names: TracedNames,
    exporter_names: Mapping[ir.Node, str | None],
) -> dict[ir.Node, str]:
    """Return the name of every node that uses a unit's weight."""
    by_call: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        tensor = names.traced_name(exporter_names[node])
        if node.op_type in _MULTIPLIES | _LOOKS_UP and tensor is not None:
            by_call.setdefault(tensor, []).append(node)
    found: dict[ir.Node, str] = {}
    for unit in units:
        weight = traced.state[unit.weight].detach().cpu().numpy()
        own = []
        for call, name in call_names(unit).items():
            wanted = _LOOKS_UP if call in unit.gathers else _MULTIPLIES
            candidates = [node for node in by_call.get(call, ()) if node.op_type in wanted]
            nodes = [node for node in candidates if _holds(node, weight)]
            if len(nodes) == 1:
                own.append(nodes[0])
                found[nodes[0]] = name
            elif len(nodes) > 1 or candidates:
                raise UserError(
                    f"{unit.path}: the exported model multiplies by something else than this layer's weight; "
                    "it cannot be quantised by name. Leave it out or write it as a plain layer"
                )
        # Equal calls on an equal input are one node in the exported graph; the one that is left stands for them.
        if not own:
            raise UserError(
                f"{unit.path}: the exported model has no Conv, Gemm, MatMul or Gather for this layer; it cannot be "
                "quantised by name"
            )
    return found


def _holds(node: ir.Node, weight: np.ndarray[Any, Any]) -> bool:
    position = 0 if node.op_type in _LOOKS_UP else 1
    value = node.inputs[position] if len(node.inputs) > 1 else None
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "Transpose":
        value = maker.inputs[0]  # of a weight that something else reads as well, as a tied head does
    if value is None or value.const_value is None:
        return False
    stored = value.const_value.numpy()
    same = stored.shape == weight.shape and np.array_equal(stored, weight)
    return bool(same or (weight.ndim == 2 and stored.shape == weight.T.shape and np.array_equal(stored, weight.T)))


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
