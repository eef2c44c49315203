"""Fold BatchNorm into the convolution or linear layer before it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from calib.graph import TracedModel, operator_name

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batchnorm(model: nn.Module, example: Sequence[Tensor]) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of `model` with every foldable BatchNorm replaced by Identity, and the paths of those folded.

    1. A BatchNorm folds when its input is read by nothing else and comes straight from a convolution or linear module.
    2. Both modules must be called exactly once, so that no other call sees the changed weight.
    3. A weight that another module shares is left alone, and so is everything else: it stays a float operation.
    """
    traced = TracedModel(model, example)
    calls: dict[str, int] = {}
    for node in traced.graph.nodes:
        if operator_name(node) in {"conv1d", "conv2d", "conv3d", "linear", "_native_batch_norm_legit_no_training", "batch_norm"}:
            path = traced.module_path(node)
            calls[path] = calls.get(path, 0) + 1
    folded = copy.deepcopy(model)
    done: list[str] = []
    for node in traced.graph.nodes:
        if operator_name(node) not in {"_native_batch_norm_legit_no_training", "batch_norm"}:
            continue
        source = node.args[0]
        layer_path, norm_path = traced.module_path(source), traced.module_path(node)
        if len(source.users) != 1 or not layer_path or calls.get(layer_path) != 1 or calls[norm_path] != 1:
            continue
        layer, norm = folded.get_submodule(layer_path), folded.get_submodule(norm_path)
        if not isinstance(norm, _BATCH_NORMS) or _shared(folded, layer):
            continue
        if isinstance(layer, _CONVOLUTIONS):
            _replace(folded, layer_path, fuse_conv_bn_eval(layer, norm))
        elif isinstance(layer, nn.Linear) and operator_name(source) == "linear" and source.meta["val"].dim() == 2:  # noqa: PLR2004
            _replace(folded, layer_path, fuse_linear_bn_eval(layer, norm))
        else:
            continue
        _replace(folded, norm_path, nn.Identity())
        done.append(norm_path)
    for parameter in folded.parameters():
        parameter.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    return folded.eval(), tuple(done)


def _shared(model: nn.Module, layer: nn.Module) -> bool:
    own = {id(parameter) for parameter in layer.parameters()}
    owners = [module for module in model.modules() for p in module.parameters(recurse=False) if id(p) in own]
    return len({id(module) for module in owners}) > 1


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    with torch.no_grad():
        setattr(parent, name, module)
