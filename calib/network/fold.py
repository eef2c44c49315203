"""Fold BatchNorm into the convolution or linear layer before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights, fuse_linear_bn_eval, fuse_linear_bn_weights

from calib.network.baked import bake_parametrizations, bake_weights
from calib.network.graph import TracedModel
from calib.network.modules import copy_model, replace_module
from calib.network.nodes import module_path, operator_name
from calib.network.norms import BatchNorm, batch_norm_of, is_layer, neutral_values
from calib.network.watched import norms_behind_layers
from calib.sizes import InputSizes

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
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

    1. A BatchNorm folds when its input is read by nothing else and comes straight from a convolution or linear module.
    2. Both modules must be called exactly once, and nothing else may read the weight or bias, so that no other call
       sees the change.
    3. A weight that is shared is left alone. One that is computed from parameters alone (weight norm, weight
       standardisation) becomes a plain one before (`calib.network.baked`).
    4. A norm that does more, a subclass with an activation say, keeps its module, whose statistics and parameters
       become those of a norm that changes nothing: the trace leaves it out, and what else its `forward` or its hooks do
       stays.

    `sizes`, `free`, `inputs` and `attention` are those of `TracedModel`.
    """
    sizes, example = tuple(sizes), tuple(example)
    copied = copy_model(model)
    bake_parametrizations(copied)
    # one run shows nearly all that folds, and takes less than the trace which shows the rest
    norms = any(type(module) in _BATCH_NORMS for module in copied.modules())
    pairs = norms_behind_layers(copy_model(copied), example) if norms else ()
    folded = tuple(_merge(copied, *pair) for pair in pairs)
    if folded:
        copied.eval().requires_grad_(False)
    traced = TracedModel(copied, example, sizes, free=free, inputs=inputs, attention=attention)
    free = traced.dynamic_batch
    if bake_weights(traced):
        traced = TracedModel(copied, example, sizes, free=free, inputs=inputs, attention=attention)
    rest = _fold(traced)
    copied.requires_grad_(False)
    if rest:
        traced = TracedModel(copied, example, sizes, free=free, inputs=inputs, attention=attention)
    return traced, folded + rest


def _fold(traced: TracedModel) -> tuple[Folded, ...]:
    """Fold in the module of a trace, in place."""
    model = traced.module
    norms = [(module_path(node), norm) for node in traced.steps if (norm := batch_norm_of(node)) is not None]
    done: list[Folded] = []
    for path, norm in norms:
        if not is_layer(norm.source) or len(norm.source.users) != 1 or not _read_by_it_alone(traced, norm.read):
            continue
        layer_path = module_path(norm.source)
        layer = model.get_submodule(layer_path)
        if isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) and _reads_its_own(traced, norm.source, layer_path, layer):
            replace_module(model, layer_path, _fused(layer, _with_values(traced, norm)))
            _neutralise(traced, norm)
        elif not _fold_in_place(traced, norm):
            continue
        done.append(Folded(path, layer_path))
    model.eval()
    return tuple(done)


def _merge(model: nn.Module, norm_path: str, layer_path: str) -> Folded:
    """Make a BatchNorm of torch's own class a part of the layer before it, in place."""
    replace_module(model, layer_path, _fused(model.get_submodule(layer_path), model.get_submodule(norm_path)))
    replace_module(model, norm_path, nn.Identity())
    return Folded(norm_path, layer_path)


def _fused(layer: nn.Module, norm: Any) -> nn.Module:
    """Return the layer with a BatchNorm behind it as one layer."""
    if isinstance(layer, _CONVOLUTIONS):
        return fuse_conv_bn_eval(layer, norm)
    assert isinstance(layer, nn.Linear)
    return fuse_linear_bn_eval(layer, _affine(norm))


def _affine(norm: Any) -> Any:
    """Return a norm that has a gain and an offset, which torch's fusion of linear layers takes for granted."""
    if norm.weight is not None and norm.bias is not None:
        return norm
    complete = nn.BatchNorm1d(len(norm.running_mean), norm.eps)
    complete.load_state_dict(norm.state_dict(), strict=False)
    return complete.eval()


def _with_values(traced: TracedModel, norm: BatchNorm) -> nn.Module:
    """Return a module of torch's own that normalises as a call of the graph does."""
    values = {tensor: traced.state[tensor.name] for tensor in norm.read}
    module: Any = nn.BatchNorm1d(len(values[norm.mean]), norm.eps).eval()
    module.running_mean, module.running_var = values[norm.mean], values[norm.variance]
    module.weight, module.bias = (
        nn.Parameter(values[tensor], requires_grad=False) if tensor is not None else None
        for tensor in (norm.weight, norm.bias)
    )
    return module  # type: ignore[no-any-return]


def _fold_in_place(traced: TracedModel, norm: BatchNorm) -> bool:
    """Fold into a layer that is no module of torch's own, if its parameters allow that: without a bias it gets that of
    the norm when it is traced next.
    """
    weight, bias = (*norm.source.args[1:3], None)[:2]
    read = [tensor for tensor in (weight, bias) if isinstance(tensor, fx.Node)]
    offset = bias if bias is not None else norm.bias
    if not isinstance(weight, fx.Node) or not isinstance(offset, fx.Node) or not _read_by_it_alone(traced, read):
        return False
    values, its = traced.state, _affine(_with_values(traced, norm))
    fuse = fuse_linear_bn_weights if operator_name(norm.source) == "linear" else fuse_conv_bn_weights
    before = values[weight.name], values[offset.name] if bias is not None else None
    changed = fuse(*before, its.running_mean, its.running_var, its.eps, its.weight, its.bias)
    _neutralise(traced, norm)
    for tensor, value in zip((weight, offset), changed, strict=True):
        values[tensor.name].copy_(value)  # the memory of the module's own
    return True


def _neutralise(traced: TracedModel, norm: BatchNorm) -> None:
    """Let a norm give what it is given; what else its module does stays, and the trace leaves the norm out."""
    for tensor, value in neutral_values(norm).items():
        traced.state[tensor.name].fill_(value)


def _read_by_it_alone(traced: TracedModel, tensors: Sequence[fx.Node]) -> bool:
    """Whether tensors are parameters and buffers of the model as they are, each with one reader."""
    own = traced.parameter_names.keys() - traced.arranged.keys()
    return all(tensor.name in own and len(tensor.users) == 1 for tensor in tensors)


def _reads_its_own(traced: TracedModel, call: fx.Node, path: str, layer: nn.Module) -> bool:
    """Whether a call multiplies by the parameters of its layer as they are, and nothing else reads them."""
    read = [argument for argument in call.args[1:3] if isinstance(argument, fx.Node)]
    names = {traced.parameter_names.get(parameter.name) for parameter in read}
    own = {f"{path}.{name}" for name, _ in layer.named_parameters()}
    return names == own and all(len(parameter.users) == 1 for parameter in read)
