"""Parts without layers of their own, or that put other parts together: activations, pooling, shapes, constants,
branches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.promise.drawing import Do, Draw, Shape, registry, shape_after
from tests.promise.layers import LAYERS

OPERATORS, operator = registry()

_ACTIVATIONS = (
    F.relu, F.relu6, F.gelu, F.silu, F.hardswish, torch.sigmoid, torch.tanh, F.leaky_relu, F.elu, F.softplus, F.mish,
    F.hardtanh, lambda x: F.softmax(x, -1), lambda x: F.log_softmax(x, 1), lambda x: F.gelu(x, approximate="tanh"),
    torch.abs, torch.square, lambda x: torch.clamp(x, -0.5, 0.7), lambda x: torch.where(x > 0, x, x * 0.1),
    lambda x: x.clamp(min=0), torch.sin, lambda x: x / (x.norm(dim=-1, keepdim=True) + 1.0),
    lambda x: torch.maximum(x, -x * 0.2), lambda x: x.masked_fill(x > 1, 1.0), lambda x: x * torch.sigmoid(1.702 * x),
    lambda x: torch.exp(-x.abs()), lambda x: torch.log1p(x.abs()), lambda x: (x * x + 1).rsqrt(), lambda x: 1 - x,
    lambda x: 2 * x, lambda x: -x, lambda x: x**2, lambda x: x.double().mul(0.5).float(), lambda x: x.half().float(),
)  # fmt: skip


@operator()
def activation(draw: Draw, shape: Shape) -> nn.Module:
    act = draw(*_ACTIVATIONS)
    return Do(lambda self, x: act(x))


@operator()
def relu(draw: Draw, shape: Shape) -> nn.Module:
    return draw(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.LeakyReLU(0.1))


@operator(3)
def pool2d(draw: Draw, shape: Shape) -> nn.Module:
    return draw(
        nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(draw(1, 2, 3)), nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveMaxPool2d(1), nn.MaxPool2d(3, 1, 1, dilation=1),
    )  # fmt: skip


@operator(2)
def pool1d(draw: Draw, shape: Shape) -> nn.Module:
    return draw(nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2), nn.MaxPool1d(3, 1, 1))


@operator(2, 3)
def reduce(draw: Draw, shape: Shape) -> nn.Module:
    dims = (2, 3) if len(shape) == 3 else (draw(1, 2),)
    how = draw(
        lambda x: x.mean(dims), lambda x: x.sum(dims), lambda x: x.amax(dims), lambda x: x.mean(dims) - x.amin(dims),
        lambda x: x.max(-1).values, lambda x: x.std(dims), lambda x: torch.logsumexp(x, dims),
    )  # fmt: skip
    return Do(lambda self, x: how(x))


@operator()
def move(draw: Draw, shape: Shape) -> nn.Module:
    """Operators that only move values."""
    last = shape[-1]
    moves = [
        lambda x: x.flip(-1), lambda x: x.roll(1, -1), lambda x: x.transpose(1, -1),
        lambda x: x[:, : max(x.shape[1] - 1, 1)], lambda x: x[..., ::2], lambda x: F.pad(x, (1, 2)),
        lambda x: F.pad(x, (0, 1), value=0.5), lambda x: x.flatten(1), lambda x: x.repeat_interleave(2, -1),
        lambda x: torch.cat([x[..., 1:], x[..., :1]], -1), lambda x: x.contiguous().clone(),
        lambda x: x.unsqueeze(1).squeeze(1), lambda x: torch.stack([x, x], -1).flatten(-2),
        lambda x: x.reshape(x.shape[0], -1), lambda x: x.view(x.size(0), *shape),
        lambda x: x.narrow(-1, 0, max(last - 1, 1)), lambda x: x.swapaxes(1, -1).contiguous(),
        lambda x: torch.cat(x.split(1, 1)[::-1], 1), lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
        lambda x: x.tile(*[1] * len(shape), 2), lambda x: x.unfold(-1, min(2, last), 1).flatten(-2),
        lambda x: x.expand(x.shape[0], *shape), lambda x: torch.cat(x.unbind(1), -1),
    ]  # fmt: skip
    how = draw(*moves)
    return Do(lambda self, x: how(x))


@operator(3)
def image_moves(draw: Draw, shape: Shape) -> nn.Module:
    up = draw("nearest", "bilinear")
    return draw(
        nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.Upsample(scale_factor=2, mode=up), nn.ZeroPad2d(1),
        nn.ReflectionPad2d(1), nn.Upsample(size=(5, 7), mode=up), nn.ChannelShuffle(draw.divisor(shape[0])),
        nn.Flatten(2), nn.Flatten(), nn.Unfold(2), Do(lambda self, x: F.interpolate(x, scale_factor=0.5)),
        Do(lambda self, x: x.permute(0, 2, 3, 1)), Do(lambda self, x: x.flatten(2).mT),
        Do(lambda self, x: x.to(memory_format=torch.channels_last)), nn.LocalResponseNorm(2), nn.Softmax2d(),
        nn.Dropout2d(0.5),
    )  # fmt: skip


@operator(1)
def vector_moves(draw: Draw, shape: Shape) -> nn.Module:
    side = draw.divisor(shape[0])
    return draw(
        nn.Unflatten(1, (side, shape[0] // side)), Do(lambda self, x: x[:, :, None] * x[:, None, :4]), nn.Dropout(0.3),
        Do(lambda self, x: x.view(-1, side, x.shape[1] // side)), nn.GLU() if shape[0] % 2 == 0 else nn.Identity(),
        Do(lambda self, x: x.unsqueeze(1).expand(-1, 3, -1)), nn.Unflatten(1, (1, side, shape[0] // side)),
    )  # fmt: skip


class _Constant(nn.Module):
    """Adds or multiplies by constants of many kinds."""

    def __init__(self, how: str, width: int) -> None:
        super().__init__()
        self.how = how
        self.doubles = torch.linspace(-1, 1, width, dtype=torch.float64)
        if how == "buffer":
            del self.doubles
            self.register_buffer("doubles", torch.linspace(-1, 1, width, dtype=torch.float64))
        self.register_buffer("order", torch.randperm(width))
        self.register_buffer("mask", torch.arange(width) % 3 != 0, persistent=False)
        self.gain = nn.Parameter(torch.rand(width) + 0.5)
        self.plain = torch.rand(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.how in ("double", "buffer"):
            return x + self.doubles.float()
        if self.how == "promoted":
            return (x * self.doubles).float()
        if self.how == "order":
            return x[..., self.order]
        if self.how == "mask":
            return x * self.mask
        if self.how == "made":
            return x + torch.arange(x.shape[-1], dtype=x.dtype) * 0.1 + torch.ones_like(x)
        if self.how == "plain":
            return x * self.plain
        if self.how == "index":
            return x.index_select(-1, self.order)
        return x * self.gain + torch.tensor(0.25)


@operator()
def constant(draw: Draw, shape: Shape) -> nn.Module:
    return _Constant(draw("double", "buffer", "promoted", "order", "mask", "made", "plain", "index", "gain"), shape[-1])


@operator()
def magnitude(draw: Draw, shape: Shape) -> nn.Module:
    """A layer with very small, very large or dead channels."""
    module = nn.Conv2d(shape[0], 6, 3, padding=1) if len(shape) == 3 else nn.Linear(shape[-1], 6)
    scale = draw(1e-12, 1e-7, 1e-4, 1e3, 1e6)
    how = draw("weights", "channel", "dead", "dead input", "activations")
    with torch.no_grad():
        if how == "weights":
            module.weight.mul_(scale)
        elif how == "channel":
            module.weight[0].mul_(scale)
        elif how == "dead":
            module.weight[1].zero_()
            module.bias.zero_()
        elif how == "dead input":
            module.weight[:, 0].zero_()
    if how == "activations":
        return Do(lambda self, x: self.layer(x * scale), layer=module)
    return module


@operator()
def in_place(draw: Draw, shape: Shape) -> nn.Module:
    """Changes its own values in place; the input is a copy."""

    def run(self: nn.Module, x: Tensor) -> Tensor:
        y = x * 1.5
        y += 0.1
        y[:, 0] = 0
        y.relu_()
        return y.mul_(2)

    return Do(run)


@operator(1, 2)
def across_the_batch(draw: Draw, shape: Shape) -> nn.Module:
    """A sample's result depends on the other samples of its batch: the same function of the batch in eager mode and in
    the engine.
    """
    how = draw(
        lambda x: x - x.mean(0),
        lambda x: F.softmax(x, 0),
        lambda x: x.flip(0),
        lambda x: x + x.amax(0, keepdim=True),
        lambda x: x.cumsum(0),
    )
    return Do(lambda self, x: how(x))


def _any_layer(draw: Draw, shape: Shape) -> nn.Module:
    names = [name for name, (ranks, _) in LAYERS.items() if len(shape) in ranks]
    for _ in range(8):
        module = LAYERS[draw(*names)][1](draw, shape).eval()
        try:
            shape_after(module, shape)
        except ValueError:
            continue
        return module
    raise ValueError("no layer suits this shape")


def _same_shape(draw: Draw, shape: Shape) -> nn.Module:
    act = draw(nn.ReLU(), nn.GELU(), nn.Identity(), nn.Tanh())
    if len(shape) == 3:
        inside = nn.Conv2d(
            shape[0], shape[0], draw(1, 3), padding="same", groups=draw(1, shape[0]), bias=draw.chance(0.5)
        )
        return nn.Sequential(inside, act)
    return nn.Sequential(nn.Linear(shape[-1], shape[-1], bias=draw.chance(0.7)), act)


@operator()
def residual(draw: Draw, shape: Shape) -> nn.Module:
    join = draw(
        lambda a, b: a + b,
        lambda a, b: F.relu(a + b),
        lambda a, b: a - b,
        lambda a, b: a * torch.sigmoid(b),
        lambda a, b: b.add_(a),
    )
    inner = _same_shape(draw, shape)
    if draw.chance(0.3):
        inner = nn.Sequential(inner, Do(lambda self, x: x + self.inside(x), inside=_same_shape(draw, shape)))
    return Do(lambda self, x: join(x, self.inner(x)), inner=inner)


@operator()
def branches(draw: Draw, shape: Shape) -> nn.Module:
    one, two, three = (_same_shape(draw, shape) for _ in range(3))
    how = draw("cat", "add", "mul", "cat-add", "stack", "late", "split")

    def run(self: nn.Module, x: Tensor) -> Tensor:
        a, b = self.one(x), self.two(x)
        if how == "add":
            return a + b + self.three(x)
        if how == "mul":
            return a * b
        if how == "cat-add":
            return torch.cat([a, b], 1) + torch.cat([b, self.three(a)], 1)
        if how == "stack":
            return torch.stack([a, b, self.three(x)]).sum(0)
        if how == "late":
            return self.three(a) + b + a
        if how == "split":
            halves = self.three(torch.cat([a, b], 0))
            return halves[: x.shape[0]] - halves[x.shape[0] :]
        return torch.cat([a, b, x], 1)

    return Do(run, one=one, two=two, three=three)


@operator()
def two_layers(draw: Draw, shape: Shape) -> nn.Module:
    first = _any_layer(draw, shape)
    second = _any_layer(draw, shape_after(first, shape))
    return nn.Sequential(first, nn.ReLU(inplace=draw.chance(0.5)), second)
