"""Fold BatchNorm into the convolution or linear layer before it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from calib.errors import UserError
from calib.network.graph import TracedModel
from calib.network.nodes import module_path, operator_name
from calib.network.tracing import Program, trace_program
from calib.sizes import InputSizes

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORM_OPERATORS = {"_native_batch_norm_legit_no_training", "batch_norm"}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Folded:
    """A BatchNorm that is now part of the layer before it; both are module paths of the model that was given."""

    norm: str
    layer: str


def trace_folded(
    model: nn.Module,
    example: Sequence[Tensor],
    sizes: Iterable[int] = (),
    *,
    free: bool = True,
    inputs: InputSizes | None = None,
) -> tuple[TracedModel, tuple[Folded, ...]]:
    """Return the trace of a copy of `model` whose foldable BatchNorms are folded, and what was folded into what.

    `model` itself is left as it is; `sizes`, `free` and `inputs` are those of `TracedModel`. What is folded is said by
    `fold_batchnorm`.
    """
    sizes, example = tuple(sizes), tuple(example)
    copied = copy_model(model)
    # torch traces for as long as the rest takes together: half of a trace shows nearly all that folds, and is used
    # where nothing does
    first: Program | None = None
    folded: tuple[Folded, ...] = ()
    if any(type(module) in _BATCH_NORMS for module in copied.modules()):
        first = trace_program(copied, example, sizes, free=free, inputs=inputs)
        folded = _fold(_Calls.of_program(copied, first[0]))
    if folded:
        copied.requires_grad_(False)
    traced = TracedModel(
        copied, example, sizes, free=first[1] if first else free, inputs=inputs, first=None if folded else first
    )
    rest = _fold(_Calls.of_trace(traced))
    copied.requires_grad_(False)
    if rest:
        traced = TracedModel(copied, example, sizes, free=traced.dynamic_batch, inputs=inputs)
    return traced, folded + rest


def fold_batchnorm(model: nn.Module, example: Sequence[Tensor]) -> tuple[nn.Module, tuple[Folded, ...]]:
    """Return a copy of `model` with every foldable BatchNorm replaced by Identity, and what was folded into what.

    1. A BatchNorm folds when its input is read by nothing else and comes straight from a convolution or linear module.
    2. Both modules must be called exactly once, and nothing else may read the weight or bias, so that no other call
       sees the change.
    3. A weight that is shared or computed (weight norm, weight standardisation) is left alone, and so are subclasses of
       BatchNorm, which may do more than normalise: they stay float operations.
    """
    traced, folded = trace_folded(model, example)
    return traced.module, folded


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model with all that hangs on it; UserError when it holds what Python cannot copy.

    Tensors that were computed, as the weight of an old weight norm, are copied without the graph of their gradient.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the __deepcopy__ and __reduce__ of foreign objects raise
        raise UserError(
            f"the model cannot be copied ({type(error).__name__}: {error}): keep locks, files, generators and threads "
            "out of it"
        ) from error


@dataclass(frozen=True)
class _Calls:
    """What a graph says about the calls of modules. `readers` counts the nodes that read a parameter or what shares its
    memory.
    """

    module: nn.Module
    nodes: tuple[fx.Node, ...]
    parameter_names: Mapping[str, str]
    readers: Mapping[str, int]

    @classmethod
    def of_trace(cls, traced: TracedModel) -> _Calls:
        readers = {node.name: len(node.users) for node in traced.graph.find_nodes(op="placeholder")}
        return cls(traced.module, tuple(traced.graph.nodes), traced.parameter_names, readers)

    @classmethod
    def of_program(cls, module: nn.Module, program: ExportedProgram) -> _Calls:
        """Read a program as torch traces it; nothing of one with parts that are graphs of their own, as under
        autocast.
        """
        if any(isinstance(part, fx.GraphModule) for part in program.graph_module.children()):
            return cls(module, (), {}, {})
        names = program.graph_signature.inputs_to_parameters
        places = {node: program.state_dict[name].untyped_storage().data_ptr() for node, name in names.items()}
        users = {node.name: len(node.users) for node in program.graph.find_nodes(op="placeholder")}
        together: dict[int, int] = {}
        for node, place in places.items():
            together[place] = together.get(place, 0) + users[node]
        return cls(module, tuple(program.graph.nodes), names, {node: together[place] for node, place in places.items()})


def _fold(calls: _Calls) -> tuple[Folded, ...]:
    """Fold in the module of a graph, in place."""
    folded = calls.module
    norms = [node for node in calls.nodes if operator_name(node) in _NORM_OPERATORS]
    paths = [module_path(node) for node in norms]
    reads = [node.args[1:5] for node in norms]  # a call under autocast has lost its path, and reads the same
    done: list[Folded] = []
    for node, norm_path in zip(norms, paths, strict=True):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        layer_path = module_path(source)
        if len(source.users) != 1 or not layer_path or paths.count(norm_path) != 1 or reads.count(node.args[1:5]) != 1:
            continue
        layer, norm = folded.get_submodule(layer_path), folded.get_submodule(norm_path)
        if (
            not isinstance(norm, _BATCH_NORMS)
            or type(norm) not in _BATCH_NORMS
            or not _reads_its_own(calls, source, layer_path, layer)
        ):
            continue
        if isinstance(layer, _CONVOLUTIONS):
            _replace(folded, layer_path, fuse_conv_bn_eval(layer, norm))
        elif isinstance(layer, nn.Linear) and operator_name(source) == "linear" and source.meta["val"].dim() == 2:
            _replace(folded, layer_path, fuse_linear_bn_eval(layer, _affine(norm)))
        else:
            continue
        _replace(folded, norm_path, nn.Identity())
        done.append(Folded(norm_path, layer_path))
    folded.eval()
    return tuple(done)


def _affine(norm: nn.Module) -> Any:
    """Return a norm that has a gain and an offset, which torch's fusion of linear layers takes for granted."""
    assert isinstance(norm, _BATCH_NORMS)
    if norm.affine:
        return norm
    complete = type(norm)(norm.num_features, norm.eps)
    complete.load_state_dict(norm.state_dict(), strict=False)
    return complete.eval()


def _reads_its_own(calls: _Calls, call: fx.Node, path: str, layer: nn.Module) -> bool:
    """Whether a call multiplies by the parameters of its layer as they are, and nothing else reads them."""
    read = [argument for argument in call.args[1:3] if isinstance(argument, fx.Node)]
    names = {calls.parameter_names.get(parameter.name) for parameter in read}
    own = {f"{path}.{name}" for name, _ in layer.named_parameters()}
    return names == own and all(calls.readers.get(parameter.name) == 1 for parameter in read)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    with torch.no_grad():
        setattr(parent, name, module)
