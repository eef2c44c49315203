"""Parts with weights: convolutions, linear layers, norms, attention, recurrent layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.promise.drawing import Do, Draw, Shape, registry

LAYERS, layer = registry()


def _settled(module: nn.Module) -> nn.Module:
    """Give every BatchNorm the statistics of a trained network."""
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            if norm.affine:
                nn.init.uniform_(norm.weight, -1.5, 1.5)
                nn.init.uniform_(norm.bias, -0.3, 0.3)
    return module


@layer(3)
def conv2d(draw: Draw, shape: Shape) -> nn.Module:
    groups = draw(1, 1, draw.divisor(shape[0]), shape[0])
    kernel = draw(1, 3, 3, 5, (1, 3), 2)
    stride = draw(1, 1, 2, (2, 1))
    padding = draw(0, 1, 2, "same") if stride == 1 else draw(0, 1)
    mode = draw("zeros", "zeros", "zeros", "reflect", "circular", "replicate")
    outputs = groups * draw(1, 2, 3, 4) if groups > 1 else draw(1, 3, 5, 8, 16)
    return nn.Conv2d(
        shape[0], outputs, kernel, stride, padding, draw(1, 1, 2), groups, bias=draw.chance(0.7), padding_mode=mode
    )


@layer(2)
def conv1d(draw: Draw, shape: Shape) -> nn.Module:
    groups = draw(1, 1, draw.divisor(shape[0]), shape[0])
    stride = draw(1, 1, 2)
    padding = draw(0, 1, 2, "same") if stride == 1 else draw(0, 1)
    mode = draw("zeros", "zeros", "reflect", "circular")
    outputs = groups * draw(1, 2, 3)
    return nn.Conv1d(
        shape[0],
        outputs,
        draw(1, 2, 3, 5),
        stride,
        padding,
        draw(1, 2),
        groups,
        bias=draw.chance(0.7),
        padding_mode=mode,
    )


@layer()
def linear(draw: Draw, shape: Shape) -> nn.Module:
    return nn.Linear(shape[-1], draw(1, 3, 5, 8, 16, 32), bias=draw.chance(0.7))


@layer(3)
def conv_bn_act(draw: Draw, shape: Shape) -> nn.Module:
    width = draw(3, 8, 12)
    norm = nn.BatchNorm2d(width, eps=draw(1e-5, 1e-3), affine=draw.chance(0.8))
    act = draw(nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.Identity(), nn.ReLU(inplace=True))
    return _settled(
        nn.Sequential(nn.Conv2d(shape[0], width, draw(1, 3), padding=draw(0, 1), bias=draw.chance(0.3)), norm, act)
    )


@layer(3)
def bn_act_conv(draw: Draw, shape: Shape) -> nn.Module:
    return _settled(nn.Sequential(nn.BatchNorm2d(shape[0]), nn.ReLU(), nn.Conv2d(shape[0], draw(4, 7), 3, padding=1)))


@layer(1)
def linear_bn(draw: Draw, shape: Shape) -> nn.Module:
    width = draw(4, 7, 16)
    return _settled(nn.Sequential(nn.Linear(shape[0], width, bias=draw.chance(0.5)), nn.BatchNorm1d(width)))


@layer(1, 2, 3)
def batch_norm(draw: Draw, shape: Shape) -> nn.Module:
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    return _settled(kind(shape[0], affine=draw.chance(0.7)))


@layer()
def layer_norm(draw: Draw, shape: Shape) -> nn.Module:
    return nn.LayerNorm(shape[-1:] if draw.chance(0.7) else shape, elementwise_affine=draw.chance(0.7))


@layer(2, 3)
def group_norm(draw: Draw, shape: Shape) -> nn.Module:
    return draw(
        nn.GroupNorm(draw.divisor(shape[0]), shape[0]),
        nn.InstanceNorm2d(shape[0]) if len(shape) == 3 else nn.InstanceNorm1d(shape[0]),
    )


@layer(3)
def depthwise_block(draw: Draw, shape: Shape) -> nn.Module:
    width = shape[0] * draw(1, 2, 3)
    depthwise = nn.Conv2d(width, width, 3, draw(1, 2), 1, groups=width)
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 1), nn.ReLU6(), depthwise, nn.ReLU6(), nn.Conv2d(width, draw(5, 8), 1)
    )


@layer(3)
def transposed_conv(draw: Draw, shape: Shape) -> nn.Module:
    return nn.ConvTranspose2d(shape[0], draw(2, 4, 5), draw(2, 3), draw(1, 2))


@layer(3)
def squeeze_excite(draw: Draw, shape: Shape) -> nn.Module:
    few = max(shape[0] // 2, 1)
    gate = draw(torch.sigmoid, F.hardsigmoid)
    return Do(
        lambda self, x: x * gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))),
        down=nn.Conv2d(shape[0], few, 1),
        up=nn.Conv2d(few, shape[0], 1),
    )


@layer(2)
def attention(draw: Draw, shape: Shape) -> nn.Module:
    heads = draw.divisor(shape[-1])
    attend = nn.MultiheadAttention(shape[-1], heads, batch_first=True, bias=draw.chance(0.7))
    weights = draw.chance(0.3)
    return Do(lambda self, x: x + self.attend(x, x, x, need_weights=weights)[0], attend=attend)


@layer(2)
def scaled_dot_product(draw: Draw, shape: Shape) -> nn.Module:
    width = shape[-1]
    causal = draw.chance(0.4)

    def run(self: nn.Module, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    return Do(run, qkv=nn.Linear(width, 3 * width), out=nn.Linear(width, width))


@layer(2)
def encoder_layer(draw: Draw, shape: Shape) -> nn.Module:
    heads = draw.divisor(shape[-1])
    return nn.TransformerEncoderLayer(
        shape[-1], heads, 16, batch_first=True, norm_first=draw.chance(0.5), activation=draw("relu", "gelu")
    )


@layer(2)
def recurrent(draw: Draw, shape: Shape) -> nn.Module:
    kind = draw(nn.LSTM, nn.GRU)
    return Do(
        lambda self, x: self.cell(x)[0],
        cell=kind(shape[-1], draw(3, 8), batch_first=True, bidirectional=draw.chance(0.3)),
    )


@layer()
def parametrized(draw: Draw, shape: Shape) -> nn.Module:
    wrap = draw(parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.weight_norm)
    if len(shape) == 3 and draw.chance(0.6):
        return wrap(nn.Conv2d(shape[0], draw(4, 5), 3, padding=1))
    return wrap(nn.Linear(shape[-1], draw(4, 8)))


class _Raw(nn.Module):
    """Multiplies by its own parameters, without a layer; with `tied` also by the transposed one."""

    def __init__(self, inputs: int, outputs: int, how: str) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.offset = nn.Parameter(torch.randn(outputs) * 0.1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "linear":
            return F.linear(x, self.table, self.offset)
        if self.how == "matmul":
            return x @ self.table.t() + self.offset
        if self.how == "einsum":
            return torch.einsum("...i,oi->...o", x, self.table)
        if self.how == "standardised":
            return F.linear(x, self.table - self.table.mean(1, keepdim=True), self.offset)
        return F.linear(F.relu(F.linear(x, self.table, self.offset)), self.table.t())


@layer()
def raw_parameters(draw: Draw, shape: Shape) -> nn.Module:
    return _Raw(shape[-1], draw(3, 8), draw("linear", "matmul", "einsum", "standardised", "tied"))


class _TwoTied(nn.Module):
    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(width, width), nn.Linear(width, width), act
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.act(self.one(x)))


@layer()
def tied(draw: Draw, shape: Shape) -> nn.Module:
    return _TwoTied(shape[-1], draw(nn.ReLU(), nn.GELU(), nn.Identity()))


@layer()
def called_twice(draw: Draw, shape: Shape) -> nn.Module:
    """One layer, called on its own result or on the same input, with something else behind each call."""
    width = shape[0] if len(shape) == 3 else shape[-1]
    one = nn.Conv2d(width, width, 3, padding=1) if len(shape) == 3 else nn.Linear(width, width)
    first, second = draw(F.relu, torch.tanh, F.gelu), draw(F.relu, F.relu6, lambda x: x, F.silu)
    if draw.chance(0.5):
        return Do(lambda self, x: second(self.layer(first(self.layer(x)))), layer=one)
    return Do(lambda self, x: first(self.layer(x)) + second(self.layer(x)) * 0.5, layer=one)


@layer(1)
def bilinear(draw: Draw, shape: Shape) -> nn.Module:
    return (
        Do(lambda self, x: self.both(x, x.flip(1)), both=nn.Bilinear(shape[0], shape[0], 3))
        if shape[0] <= 16
        else nn.Identity()
    )


@layer(1, 2)
def prelu(draw: Draw, shape: Shape) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[-1], shape[-1]), nn.PReLU(draw(1, shape[0])))
