"""How generated networks begin and end: inputs of many kinds, and outputs of many forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.promise.drawing import Do, Draw, Shape


class Pair(NamedTuple):
    scores: Tensor
    extra: Tensor


torch.utils._pytree._register_namedtuple(
    Pair, serialized_type_name="tests.promise.Pair"
)  # torch.export wants to know it

_IMAGES = ((1, 5, 5), (3, 8, 8), (3, 7, 9), (4, 6, 6), (8, 4, 4), (5, 9, 3), (3, 16, 16), (1, 1, 1), (2, 12, 1))
_SIGNALS = ((4, 9), (7, 8), (3, 16), (5, 5), (6, 1), (1, 12))
_VECTORS = ((8,), (16,), (5,), (32,), (1,), (7,))

Sampler = Callable[[int, torch.Generator], Tensor]
"""Draws `[n, ...]` of one input."""


def floats(shape: Shape, dtype: torch.dtype = torch.float32) -> Sampler:
    return lambda count, generator: torch.randn(count, *shape, generator=generator).to(dtype)


def integers(shape: Shape, below: int, dtype: torch.dtype = torch.int64) -> Sampler:
    return lambda count, generator: torch.randint(0, below, (count, *shape), generator=generator, dtype=torch.int64).to(
        dtype
    )


def beginning(draw: Draw) -> tuple[Sampler, nn.Module, Shape]:
    """The first input, what makes floats of it, and their shape."""
    shape = draw(*_IMAGES[:7], *_IMAGES, *_SIGNALS, *_VECTORS)
    kind = draw(
        *["plain"] * 8, "words", "bytes", "double", "bool", "half", "strided", "gradient", "embedding bag", "int32"
    )
    if kind == "words":
        length, width = draw(3, 6, 9), draw(4, 8)
        return integers((length,), 20), nn.Embedding(20, width, padding_idx=draw(None, 0)), (length, width)
    if kind == "embedding bag":
        return integers((4,), 20), nn.EmbeddingBag(20, 8, mode=draw("mean", "sum")), (8,)
    if kind == "bytes":
        return integers(shape, 256, torch.uint8), Do(lambda self, x: x.float() / 255), shape
    if kind == "int32":
        return integers(shape, 9, torch.int32), Do(lambda self, x: (x - 4) * 0.5), shape
    if kind == "bool":
        return integers(shape, 2, torch.bool), Do(lambda self, x: x.float()), shape
    if kind in ("double", "half"):
        return floats(shape, torch.float64 if kind == "double" else torch.float16), Do(lambda self, x: x.float()), shape
    if kind == "strided":
        turned = (*shape[1:], shape[0])
        plain = floats(turned)
        return lambda count, generator: plain(count, generator).movedim(-1, 1), nn.Identity(), shape
    if kind == "gradient":
        plain = floats(shape)
        return lambda count, generator: plain(count, generator).requires_grad_(), nn.Identity(), shape
    return floats(shape), nn.Identity(), shape


def second_input(draw: Draw) -> tuple[Sampler, nn.Module]:
    """Another input, and what makes one factor for each sample of it: `[n]`."""
    width = draw(3, 6)
    kind = draw("vector", "words", "mask", "unused", "lengths", "image")
    if kind == "vector":
        return floats((width,)), Do(lambda self, x: torch.tanh(self.layer(x))[:, 0], layer=nn.Linear(width, 2))
    if kind == "words":
        return integers((width,), 10), Do(lambda self, x: self.layer(x).mean((1, 2)), layer=nn.Embedding(10, 4))
    if kind == "mask":
        return integers((), 2, torch.bool), Do(lambda self, x: torch.where(x, 1.0, 0.5))
    if kind == "lengths":
        return integers((), 7), Do(lambda self, x: 1.0 / (1 + x))
    if kind == "image":
        return floats((3, 5, 5)), Do(lambda self, x: self.layer(x).mean((1, 2, 3)), layer=nn.Conv2d(3, 2, 3))
    return floats((width,)), Do(lambda self, x: torch.ones(x.shape[0]))


ORDINARY_OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "plain": lambda x, y: y,
    "tuple": lambda x, y: (y, y * 2),
    "dict": lambda x, y: {"scores": y, "more": [y.abs()]},
    "list": lambda x, y: [y],
    "twice": lambda x, y: (y, y),
    "input": lambda x, y: (y, x),
    "classes": lambda x, y: (y, y.argmax(-1)),
}
ODD_OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "none": lambda x, y: (y, None),
    "scalar": lambda x, y: (y, y.mean()),
    "only scalar": lambda x, y: y.sum(),
    "bool": lambda x, y: (y, y > 0),
    "pair": lambda x, y: Pair(y, y - 1),
    "number": lambda x, y: (y, 3),
    "text": lambda x, y: {"scores": y, "name": "net"},
    "size": lambda x, y: (y, x.shape[0]),
    "constant": lambda x, y: (y, torch.ones(2)),
    "no batch": lambda x, y: y.mean(0),
    "double": lambda x, y: y.double(),
    "half": lambda x, y: y.half(),
    "empty": lambda x, y: (y, y[:, :0]),
    "view of the input": lambda x, y: (y, x[:1]),
    "none first": lambda x, y: (None, y),
    "complex": lambda x, y: (y, torch.complex(y, y)),
    "nothing": lambda x, y: (),
    "transposed": lambda x, y: y.transpose(0, -1),
    "masked": lambda x, y: (y, y[y > 0]),
}

ODD_NAMES = (
    "a.b",
    "quote'",
    'double"quote',
    "new\nline",
    "über",
    "with space",
    "#2",
    "a/b",
    "x" * 300,
    "add",
    "weight",
    "class",
    "{0}",
    "%d",
    "tab\t",
    "",
)
"""Names of layers; PyTorch refuses the first and the last itself."""
