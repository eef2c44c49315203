"""What the inputs of a model look like, where no sample is there to show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calib.errors import UserError
from calib.sizes import Shape, StatedSizes


@dataclass(frozen=True)
class InputKind:
    """Shape of one sample of an input, its type, and for integers the least and the largest value."""

    shape: Shape
    dtype: torch.dtype
    low: int = 0
    high: int = 0

    def draw(self, samples: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
        """Return `[samples, ...]`: normal numbers of standard deviation `scale`, or integers that are equally likely."""
        size = (samples, *self.shape)
        if self.dtype.is_floating_point:
            return (torch.randn(size, generator=generator) * scale).to(self.dtype)
        return torch.randint(self.low, self.high + 1, size, generator=generator).to(self.dtype)


def kinds_from_example(example: Any) -> tuple[InputKind, ...]:
    """Return the kinds of a task's `example_inputs()`: a tensor, or a tuple of them, each `[n, ...]`.

    The values of floats do not matter. Integers are drawn from the least to the largest one of the example.
    """
    tensors = (example,) if isinstance(example, Tensor) else example
    right = isinstance(tensors, (tuple, list)) and all(
        isinstance(each, Tensor) and each.dim() and each.numel() and not each.is_complex() for each in tensors
    )
    if not right or not tensors:
        raise UserError(
            "example_inputs() must return a tensor or a tuple of tensors of floats, integers or booleans, each [n, ...] "
            "as forward() takes them"
        )
    return tuple(map(_kind, tensors))


def _kind(tensor: Tensor) -> InputKind:
    shape = tuple(tensor.shape[1:])
    if tensor.is_floating_point():
        return InputKind(shape, tensor.dtype)
    return InputKind(shape, tensor.dtype, int(tensor.min()), int(tensor.max()))


def kinds_from_shapes(stated: Sequence[StatedSizes], names: Callable[[int], list[str]]) -> tuple[InputKind, ...]:
    """Return the kinds of inputs of which the sizes alone are stated: single precision. `names(count)` are those of the
    model's first inputs. UserError for a name that is not among them.
    """
    by_name = {each.name: each for each in stated}
    first = names(len(by_name))
    for name in by_name:
        if name not in first:
            raise UserError(f"--shape {name}=...: the first inputs of the model are {', '.join(first) or 'none'}")
    return tuple(InputKind(by_name[name].usual[1:], torch.float32) for name in first)
