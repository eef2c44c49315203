"""Run a model once to see which BatchNorms read what a layer writes, and nothing else does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from calib.network.free_axes import quiet
from calib.network.operators import may_alias

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def norms_behind_layers(model: nn.Module, example: Sequence[Tensor]) -> tuple[tuple[str, str], ...]:
    """Return the paths of each BatchNorm that can be folded, and of the layer before it, in the order of their calls.

    1. Both are torch's own classes without hooks, at one place of the model, and called once.
    2. The norm reads the very tensor that the layer returns, which nothing else reads and the model does not return.
    3. The layer multiplies by its own parameters (not by copies, as under autocast), and nothing else reads them or
       those of the norm.

    `forward` runs once on `example`: give a copy of the model that is thrown away. One that fails has no such norms.
    """
    parts = dict(_alone(model))
    calls: list[_Call] = []
    for path, part in parts.items():
        part.register_forward_hook(_keeper(path, calls))
    try:
        with quiet(), torch.random.fork_rng(devices=[]), _Reads() as reads:
            output = model(*(tensor.detach().clone() for tensor in example))
    except Exception:  # noqa: BLE001 - the trace will say what is wrong with it
        return ()
    reads.count.update(map(_place, _tensors(output)))
    often = Counter(call.path for call in calls)
    once = [call for call in calls if often[call.path] == 1]
    layers = {id(call.output): call for call in once if type(parts[call.path]) in _LAYERS}
    return tuple(
        (call.path, layer.path)
        for call in once
        if type(parts[call.path]) in _NORMS and (layer := layers.get(id(call.input))) is not None
        if _belong(parts[layer.path], parts[call.path], layer.output, reads)
    )


class _Call(NamedTuple):
    """Holds the tensors, so that no other ones get their memory."""

    path: str
    input: Any
    output: Any


def _keeper(path: str, calls: list[_Call]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def keep(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        calls.append(_Call(path, given[0] if given else None, output))

    return keep


class _Reads(TorchDispatchMode):
    """Counts the operators that read each memory, and knows which memories the operator read that made one.

    Views count for nothing: what reads them reads the memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.made_of: dict[int, set[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or not may_alias(func):  # noqa: SLF001 - no other way to it
            read = {_place(tensor) for tensor in _tensors((args, kwargs))}
            self.count.update(read)
            for place in {_place(tensor) for tensor in _tensors(result)} - read:  # where another tensor may have lain
                self.count[place], self.made_of[place] = 0, read
        return result


def _alone(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers and norms that stand at one place and do nothing but what their class does."""
    modules = list(model.named_modules(remove_duplicate=False))
    places = Counter(id(module) for _, module in modules)
    for path, module in modules:
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)  # noqa: SLF001
        if type(module) in (*_NORMS, *_LAYERS) and places[id(module)] == 1 and path and not hooked:
            yield path, module


def _belong(layer: nn.Module, norm: nn.Module, between: Tensor, reads: _Reads) -> bool:
    assert isinstance(norm, _NORMS)
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None or (isinstance(layer, nn.Linear) and between.dim() != 2):
        return False
    read = [between, *layer.parameters(), *norm.parameters(), mean, variance]
    alone = all(tensor.numel() and reads.count[_place(tensor)] == 1 for tensor in read)
    return alone and {_place(tensor) for tensor in layer.parameters()} <= reads.made_of.get(_place(between), set())


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
