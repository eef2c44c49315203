"""Trace a module with `torch.export`, and refuse what no single graph can stand for."""

from __future__ import annotations

import keyword
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from calib.errors import UserError
from calib.network.decomposed import without_retracing
from calib.network.free_axes import quiet, traced_program, untraceable
from calib.network.nodes import OPERATOR, arguments_of, module_path, operator_name
from calib.sizes import InputSizes

_OFF_WITHOUT_TRAINING = {"train", "training"}
_OFF_AT_ZERO = {"p", "dropout_p", "dropout"}
_UNWRITABLE = '"\\\n\r'


Program = tuple[ExportedProgram, bool]
"""A traced program, and whether its batch dimension is free."""


def export_program(
    model: nn.Module,
    example: tuple[Tensor, ...],
    sizes: Iterable[int] = (),
    *,
    free: bool = True,
    inputs: InputSizes | None = None,
) -> Program:
    """Return the traced program, in-place operators removed, and whether its batch dimension is free; see
    `trace_program`.

    Raises UserError when the model cannot be traced, branches on values, draws random numbers, or takes the statistics
    of the batch.
    """
    program, is_free = trace_program(model, example, sizes, free=free, inputs=inputs)
    try:
        with quiet():
            program = without_retracing(program) or program.run_decompositions({})
    except Exception as error:
        raise untraceable(error) from error
    _check_straight(program.graph)
    forget_layouts(program)
    _drop_side_effects(program)
    _check_output(program)
    return program, is_free


def trace_program(
    model: nn.Module,
    example: tuple[Tensor, ...],
    sizes: Iterable[int] = (),
    *,
    free: bool = True,
    inputs: InputSizes | None = None,
) -> Program:
    """Return the program as torch traces it, in-place operators included, and whether its batch dimension is free.

    With `free` the leading dimension is tried as a free one. It is kept when every size in `sizes`, the numbers of
    samples that will run at once, lies inside the range that the trace holds for. Otherwise the size of the example is
    fixed.

    The axes that `inputs` says are free stay so: UserError where that cannot be.
    """
    if model.training:
        raise UserError("the model is in training mode: call model.eval() before handing it over")
    _check_names(model)
    program, is_free = traced_program(model, example, tuple(sizes), free, inputs)
    for module in program.graph_module.modules():  # the parts under autocast or no_grad are modules of their own
        if isinstance(module, fx.GraphModule):
            check_deterministic(module.graph)
            whole = module is program.graph_module
            names = [node.name for node in module.graph.find_nodes(op="placeholder")]
            _check_norms(module.graph, program.graph_signature.user_inputs if whole else names)
    return program, is_free


def check_deterministic(graph: fx.Graph) -> None:
    """Raise UserError, which names the operator and its module, when the graph draws random numbers.

    Torch tags the operators that do (`nondeterministic_seeded`). One that is told not to draw, as a dropout outside
    training, is fine.
    """
    for node in graph.nodes:
        if draws(node):
            raise UserError(
                f"the model draws random numbers ({operator_name(node)}{_where(node)}): make them an input, or leave "
                "them out "
                "in eval mode"
            )


def draws(node: fx.Node) -> bool:
    """Whether an operator's result is another one each time."""
    if not isinstance(node.target, OPERATOR) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    values = arguments_of(node)
    off = [values[name] is False for name in _OFF_WITHOUT_TRAINING & set(values)]
    off += [isinstance(values[name], (int, float)) and values[name] == 0 for name in _OFF_AT_ZERO & set(values)]
    return not any(off)


def _check_norms(graph: fx.Graph, inputs: Collection[str]) -> None:
    """Refuse a BatchNorm that takes the statistics of the batch: what a sample gives would depend on the samples beside
    it. Weights may be normalised so (weight standardisation).
    """
    computed: set[fx.Node] = set()
    for node in graph.nodes:
        if not computed.isdisjoint(node.all_input_nodes) or (node.op == "placeholder" and node.name in inputs):
            computed.add(node)
        norm = operator_name(node) in ("batch_norm", "cudnn_batch_norm", "native_batch_norm")
        if norm and node in computed and arguments_of(node).get("training"):
            raise UserError(
                f"the BatchNorm{_where(node)} normalises with the statistics of each batch, as in training: put it "
                "into eval mode "
                "with running statistics, so that a sample's result does not depend on the samples beside it"
            )


def _check_straight(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "get_attr":
            raise UserError(
                f"the model branches on values ({next(iter(node.users)).target}): quantise the parts apart, or write "
                "it with torch.where"
            )


def forget_layouts(program: ExportedProgram) -> None:
    """Let `reshape` stand for `view`, in place. A view is about memory, which an engine does not know, and a fused
    attention may lay out its result in another way each time it is traced.
    """
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default
    program.graph_module.recompile()


def _drop_side_effects(program: ExportedProgram) -> None:
    """Remove the results that only change a buffer or an input, so that the graph returns what `forward` returns.

    A counter that nothing reads is gone with that. Raises UserError when the output depends on a buffer that `forward`
    changes: the next call would give something else.
    """
    graph, signature = program.graph, program.graph_signature
    kept = [spec.kind == OutputKind.USER_OUTPUT for spec in signature.output_specs]
    if all(kept):
        return
    changed = {spec.target: spec for spec in signature.output_specs if spec.kind == OutputKind.BUFFER_MUTATION}
    (output,) = graph.find_nodes(op="output")
    output.args = (tuple(value for value, keep in zip(output.args[0], kept, strict=True) if keep),)
    signature.output_specs[:] = [spec for spec, keep in zip(signature.output_specs, kept, strict=True) if keep]
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    placeholders = {node.name: node for node in graph.find_nodes(op="placeholder")}
    for name, buffer in signature.inputs_to_buffers.items():
        if buffer in changed and placeholders[name].users:
            raise UserError(
                f"forward() changes the buffer {buffer!r}, and the output depends on it: an engine has no memory "
                "between calls, "
                "so make it an input and an output, or a constant"
            )


def _where(node: fx.Node) -> str:
    path = module_path(node)
    return f" in {path!r}" if path else ""


def _check_names(model: nn.Module) -> None:
    for path, _ in model.named_modules():
        if any(character in path for character in _UNWRITABLE) or any(map(keyword.iskeyword, path.split("."))):
            raise UserError(
                f"torch.export cannot write the module name {path!r}, which holds a quotation mark, a backslash, a "
                "line break, or is a word of "
                "Python itself: rename it"
            )


def _check_output(program: ExportedProgram) -> None:
    """Refuse numbers and texts beside the tensors of the output; None may be there."""
    (output,) = program.graph.find_nodes(op="output")
    leaves = [leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf for leaf in output.args[0]]
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, Tensor):
            kind = "int" if isinstance(leaf, torch.SymInt) else type(leaf).__name__
            raise UserError(
                f"forward() returns a value of type {kind} beside tensors: an engine gives tensors only, so return "
                "those alone"
            )
        if isinstance(leaf, Tensor) and leaf.is_complex():
            raise UserError(
                "forward() returns complex numbers, which ONNX does not have: return torch.view_as_real of them"
            )
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise UserError("forward() returns no tensor: there is nothing that an engine could give")
