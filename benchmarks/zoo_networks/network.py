"""One architecture of the zoo: how it is made, scaled and fed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int], tuple[Tensor, ...]]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_POSITION = 0.5
_BIAS = 0.1
_ABOVE_ZERO = 1.0


@dataclass(frozen=True)
class Network:
    """`make` gives the module as its authors initialise it; `inputs` draws the positional inputs of so many samples."""

    name: str
    field: str
    make: Callable[[], nn.Module]
    inputs: Inputs

    def module(self) -> nn.Module:
        """The module in eval mode with weights that keep numbers of one size from layer to layer;
        the same each time.
        """
        torch.manual_seed(0)
        module = self.make()
        scale(module)
        normalise(module, self.inputs(16))
        return module.eval()


def scale(module: nn.Module) -> None:
    """Draw weights as large as trained ones: most authors' own (a deviation of 0.02) let random networks answer
    everything alike, and layers of a few dozen inputs do nothing with them.
    """
    with torch.no_grad():
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() < 2:
                continue
            if isinstance(part, nn.Embedding):
                weight.normal_(std=1.0)
            elif isinstance(part, nn.Linear) or "Conv" in type(part).__name__:
                rows_first = type(part).__name__ != "Conv1D" and "Transpose" not in type(part).__name__
                fan_in = weight[0].numel() if rows_first else weight.shape[0]
                gain = 1.4 if isinstance(part, _CONVOLUTIONS) else 1.0
                weight.normal_(std=gain * fan_in**-0.5)
                if getattr(part, "bias", None) is not None:
                    part.bias.normal_(std=_BIAS)
        for chain in module.modules():
            for layer, after in itertools.pairwise(chain) if isinstance(chain, nn.Sequential) else ():
                weight = getattr(layer, "weight", None)
                if isinstance(after, nn.ReLU) and isinstance(weight, Tensor) and weight.shape[0] == 1:
                    weight.abs_()  # a map of depths would be zero almost everywhere
        for name, parameter in module.named_parameters():
            if name.rsplit(".", 1)[-1].endswith(("token", "position", "positions", "position_embeddings", "embed")):
                parameter.normal_(std=_POSITION)


def normalise(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Let every BatchNorm know the statistics of random data, as training would leave them, and shift what it gives
    above zero: of a deep chain in which half of all units are off, chance alone decides what it answers.
    """
    norms = [part for part in module.modules() if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d))]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
        if norm.affine:
            nn.init.ones_(norm.weight)
            nn.init.constant_(norm.bias, _ABOVE_ZERO)
    if norms:
        with torch.no_grad():
            module(*inputs)


class Called(nn.Module):
    """A model whose forward wants other arguments than tensors by position: `names` says which tensor is which."""

    def __init__(self, model: nn.Module, *names: str, **fixed: Any) -> None:
        super().__init__()
        self.model = model
        self._names, self._fixed = names, fixed

    def forward(self, *tensors: Tensor) -> Any:
        return self.model(**dict(zip(self._names, tensors, strict=True)), **self._fixed)


def images(size: int, channels: int = 3) -> Inputs:
    """Random images with some structure: coarse noise under fine noise."""

    def draw(count: int) -> tuple[Tensor, ...]:
        coarse = nn.functional.interpolate(torch.randn(count, channels, 4, 4), size=(size, size), mode="bilinear")
        return (coarse + 0.5 * torch.randn(count, channels, size, size),)

    return draw


def tokens(length: int, vocabulary: int = 128) -> Inputs:
    return lambda count: (torch.randint(3, vocabulary, (count, length)),)


def floats(*shape: int) -> Inputs:
    return lambda count: (torch.randn(count, *shape),)
