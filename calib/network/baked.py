"""Layers whose weight is computed from parameters alone become plain layers: in an engine it is a constant."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from calib.network.graph import TracedModel
from calib.network.modules import replace_module
from calib.network.nodes import arguments_of, module_path, operator_name

_LAYERS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d, "linear": nn.Linear}


def bake_parametrizations(model: nn.Module) -> None:
    """Put what parametrisations compute in the place of what they compute it from, in place.

    Those of `torch.nn.utils.parametrize`, the older hooks of weight norm and spectral norm, and masks of pruning.
    """
    with torch.no_grad():
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                _bake(module)
            for hook in list(module._forward_pre_hooks.values()):  # noqa: SLF001 - no other way to what is hooked
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(module, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(module, hook.name)
                elif isinstance(hook, prune.BasePruningMethod):
                    prune.remove(module, hook._tensor_name)  # noqa: SLF001 - there is no other name of it


def _bake(module: nn.Module) -> None:
    """Torch's own `remove_parametrizations` changes a class that a copy shares with its original."""
    values = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def bake_weights(traced: TracedModel) -> bool:
    """Replace modules that compute a weight from parameters alone, as weight standardisation does, by plain layers in
    the module of a trace; returns whether there were any.

    Such a module stands at one place, is called once, and does nothing else with what it is given. Its sum may be
    `[out]`, a parameter or computed as well.
    """
    layers = [node for node in traced.steps if operator_name(node) in _LAYERS]
    computed = [
        node
        for node in layers
        if str(node.args[1]) not in traced.state and node.args[1].meta["val"].dim() > 1  # type: ignore[union-attr]
    ]
    constants = dict(_constants(traced)) if computed else {}
    found = False
    for node in computed:
        path = module_path(node)
        if node.args[1] not in constants or not path or not _does_nothing_else(traced, node, path, constants):
            continue
        replace_module(traced.module, path, _plain(node, {**_state(traced), **constants}))
        found = True
    return found


def _state(traced: TracedModel) -> dict[fx.Node, Tensor]:
    return {traced.nodes[name]: tensor for name, tensor in traced.state.items()}


def _constants(traced: TracedModel) -> Iterator[tuple[fx.Node, Any]]:
    """Yield what nodes give that depend on parameters and buffers, and on nothing else."""
    known: dict[fx.Node, Any] = dict(_state(traced))
    for node in traced.steps:
        if node.all_input_nodes and all(each in known for each in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            yield node, known[node]


def _does_nothing_else(traced: TracedModel, node: fx.Node, path: str, constants: dict[fx.Node, Any]) -> bool:
    """Whether all that the module at `path` does is to compute a weight and to multiply by it."""
    module = traced.module.get_submodule(path)
    alone = [each for _, each in traced.module.named_modules(remove_duplicate=False)].count(module) == 1
    hooked = module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001 - see bake_parametrizations
    ours = [each for each in traced.steps if f"{module_path(each)}.".startswith(f"{path}.") and each not in constants]
    return alone and not hooked and ours == [node]


def _plain(node: fx.Node, values: dict[fx.Node, Any]) -> nn.Module:
    """Return the layer that a call is."""
    given = arguments_of(node)
    weight, bias = values[given["weight"]], given["bias"]
    kind = _LAYERS[operator_name(node)]
    how = {name: given[name] for name in inspect.signature(kind).parameters.keys() & given.keys() - {"bias"}}
    inputs = weight.shape[1] * given.get("groups", 1)
    sizes = () if kind is nn.Linear else (weight.shape[2:],)
    layer: Any = kind(inputs, len(weight), *sizes, bias=bias is not None, **how)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(values[bias].clone(), requires_grad=False)
    return layer.eval()  # type: ignore[no-any-return]
