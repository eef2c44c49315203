"""Whether a trace keeps what operators make of fake tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy


def fake_results(model: nn.Module) -> AbstractContextManager[None]:
    """Let torch look up what operators make of fake tensors only where the layers of a model repeat, for as long as the
    context is open.

    With free sizes torch keeps results for one trace alone. To keep a result takes longer than to compute it: a sixth
    of the time of a small network. In a network of many equal layers the look-up saves up to half of a trace. Where
    torch has no such setting, it is left alone.
    """
    import torch._dynamo

    # torch has no other name for it
    if layers_repeat(model) or not hasattr(torch._dynamo.config, "fake_tensor_cache_enabled"):  # noqa: SLF001
        return nullcontext()
    patched: AbstractContextManager[None] = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)  # noqa: SLF001
    return patched


def layers_repeat(model: nn.Module) -> bool:
    """Whether a model has each kind of layer twice on average: the same class with parameters of the same shapes."""
    layers = [_kind(module) for module in model.modules() if not any(True for _ in module.children())]
    return len(layers) >= 2 * len(set(layers))


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    parameters = layer.parameters(recurse=False)
    return (type(layer), *(() if is_lazy(parameter) else tuple(parameter.shape) for parameter in parameters))
