"""Fold BatchNorm into the convolution or linear layer before it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from calib.errors import UserError
from calib.network.graph import TracedModel
from calib.network.nodes import module_path, operator_name
from calib.network.watched import norms_behind_layers
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
    attention: bool = False,
) -> tuple[TracedModel, tuple[Folded, ...]]:
    """Return the trace of a copy of `model` whose foldable BatchNorms are folded, and what was folded into what.

    `model` itself is left as it is; `sizes`, `free`, `inputs` and `attention` are those of `TracedModel`. What is
    folded is said by `fold_batchnorm`.
    """
    sizes, example = tuple(sizes), tuple(example)
    copied = copy_model(model)
    # one run shows nearly all that folds, and takes less than the trace which shows the rest
    norms = any(type(module) in _BATCH_NORMS for module in copied.modules())
    pairs = norms_behind_layers(copy_model(model), example) if norms else ()
    folded = tuple(_merge(copied, *pair) for pair in pairs)
    if folded:
        copied.eval().requires_grad_(False)
    traced = TracedModel(copied, example, sizes, free=free, inputs=inputs, attention=attention)
    rest = _fold(traced)
    copied.requires_grad_(False)
    if rest:
        free = traced.dynamic_batch
        traced = TracedModel(copied, example, sizes, free=free, inputs=inputs, attention=attention)
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


def _fold(traced: TracedModel) -> tuple[Folded, ...]:
    """Fold in the module of a trace, in place."""
    folded = traced.module
    norms = [node for node in traced.graph.nodes if operator_name(node) in _NORM_OPERATORS]
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
        linear = isinstance(layer, nn.Linear) and operator_name(source) == "linear" and source.meta["val"].dim() == 2
        foldable = type(norm) in _BATCH_NORMS and (linear or isinstance(layer, _CONVOLUTIONS))
        if foldable and _reads_its_own(traced, source, layer_path, layer):
            done.append(_merge(folded, norm_path, layer_path))
    folded.eval()
    return tuple(done)


def _merge(model: nn.Module, norm_path: str, layer_path: str) -> Folded:
    """Make a BatchNorm a part of the layer before it, in place."""
    layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
    assert isinstance(norm, _BATCH_NORMS)
    if isinstance(layer, _CONVOLUTIONS):
        _replace(model, layer_path, fuse_conv_bn_eval(layer, norm))
    else:
        assert isinstance(layer, nn.Linear)
        _replace(model, layer_path, fuse_linear_bn_eval(layer, _affine(norm)))
    _replace(model, norm_path, nn.Identity())
    return Folded(norm_path, layer_path)


def _affine(norm: nn.Module) -> Any:
    """Return a norm that has a gain and an offset, which torch's fusion of linear layers takes for granted."""
    assert isinstance(norm, _BATCH_NORMS)
    if norm.affine:
        return norm
    complete = type(norm)(norm.num_features, norm.eps)
    complete.load_state_dict(norm.state_dict(), strict=False)
    return complete.eval()


def _reads_its_own(traced: TracedModel, call: fx.Node, path: str, layer: nn.Module) -> bool:
    """Whether a call multiplies by the parameters of its layer as they are, and nothing else reads them."""
    read = [argument for argument in call.args[1:3] if isinstance(argument, fx.Node)]
    names = {traced.parameter_names.get(parameter.name) for parameter in read}
    own = {f"{path}.{name}" for name, _ in layer.named_parameters()}
    return names == own and all(len(parameter.users) == 1 for parameter in read)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    with torch.no_grad():
        setattr(parent, name, module)
