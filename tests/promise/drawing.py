"""How generated networks draw what they are made of: every choice comes from one seeded stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Shape = tuple[int, ...]
"""The shape of one sample: `[features]`, `[channels, length]` or `[channels, height, width]`."""


class Draw:
    """Choices of one part of a network; equal seeds make equal parts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, *options: T) -> T:
        return self._random.choice(options)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def seed(self) -> int:
        return self._random.randrange(2**31)

    def divisor(self, number: int) -> int:
        return self(*(size for size in range(1, number + 1) if number % size == 0))


class Do(nn.Module):
    """Layers by name, and what `forward` does with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


Part = Callable[[Draw, Shape], nn.Module]
"""Makes a module that takes `[n, *shape]`; the module may change the shape. Raising ValueError says that the shape does
not suit it.
"""


def registry() -> tuple[dict[str, tuple[tuple[int, ...], Part]], Callable[..., Callable[[Part], Part]]]:
    """Return an empty collection of parts, by name with the ranks of samples that suit them, and the decorator that
    fills it.
    """
    found: dict[str, tuple[tuple[int, ...], Part]] = {}

    def part(*ranks: int) -> Callable[[Part], Part]:
        def add(make: Part) -> Part:
            found[make.__name__.strip("_")] = (ranks or (1, 2, 3), make)
            return make

        return add

    return found, part


def names_for(parts: dict[str, tuple[tuple[int, ...], Part]], shape: Shape) -> Sequence[str]:
    return [name for name, (ranks, _) in parts.items() if len(shape) in ranks]


def shape_after(module: nn.Module, shape: Shape) -> Shape:
    """The shape of a sample behind a module; ValueError when the module does not take it or gives something
    unwieldy.
    """
    with torch.no_grad():
        try:
            result = module(torch.rand(2, *shape))
        except (RuntimeError, IndexError) as error:
            raise ValueError(str(error)) from error
    if result.dim() not in (2, 3, 4) or result.shape[0] != 2 or not 0 < result[0].numel() <= 4096:
        raise ValueError(f"a sample of shape {list(shape)} becomes {list(result.shape)}")
    return tuple(result.shape[1:])
