"""Networks that are unusual but sound, and layers by name for those that are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor):
        return self.run(self, x)


class Tied(nn.Module):
    """The head multiplies by the table of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.layer(self.table(x).mean(1))))


class Anything(nn.Module):
    """Takes whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0] + inputs[1])


def _in_place(self, x):
    y = self.a(x)
    y += 1
    y.relu_()
    y[:, :2] = 0
    return self.b(y.mul_(2))


def two_layers(self, x):
    return self.b(F.relu(self.a(x)))


def conv(*arguments, **options):
    return nn.Conv2d(*arguments, **options)


def _zeros(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


SOUND = {
    "in-place operators": (lambda: Network(_in_place, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), (8,)),
    "the same output twice": (lambda: Network(lambda self, x: (self.a(x),) * 2, a=nn.Linear(8, 8)), (8,)),
    "an input as output": (lambda: Network(lambda self, x: (x, self.a(x)), a=nn.Linear(8, 8)), (8,)),
    "a dictionary as output": (lambda: Network(
        lambda self, x: {"one": self.a(x), "two": (self.b(x),)}, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), (8,)),
    "convolutions without bias": (lambda: Network(two_layers, a=conv(8, 8, 3, bias=False), b=conv(8, 8, 3, bias=False)),
        (8, 8, 8)),
    "three groups": (lambda: Network(two_layers, a=conv(9, 9, 3, groups=3), b=conv(9, 5, 1)), (9, 6, 6)),
    "one pixel": (lambda: Network(two_layers, a=conv(8, 8, 1), b=conv(8, 8, 3, padding=1)), (8, 1, 1)),
    "a batch norm in front": (lambda: Network(two_layers, a=nn.BatchNorm2d(8), b=conv(8, 8, 3)), (8, 6, 6)),
    "a transposed convolution": (lambda: Network(two_layers, a=nn.ConvTranspose2d(8, 8, 2, 2), b=conv(8, 4, 1)),
        (8, 4, 4)),
    "reflected padding and dilation": (lambda: Network(
        two_layers, a=conv(8, 8, 3, padding=1, padding_mode="reflect"),
        b=conv(8, 8, 3, padding="same", dilation=2)), (8, 6, 6)),
    "names with separators": (lambda: Network(lambda self, x: getattr(self, "b#2")(getattr(self, "a/weight")(x)),
        **{"a/weight": nn.Linear(8, 8), "b#2": nn.Linear(8, 8)}), (8,)),
    "weights of zero": (lambda: Network(two_layers, a=_zeros(nn.Linear(8, 8)), b=nn.Linear(8, 8)), (8,)),
    "activations of zero": (lambda: Network(
        lambda self, x: two_layers(self, x * 0), a=nn.Linear(8, 8, bias=False), b=nn.Linear(8, 8)), (8,)),
    "a layer that runs three times": (lambda: Network(lambda self, x: self.a(F.relu(self.a(F.relu(self.a(x))))),
        a=conv(8, 8, 3, padding=1)), (8, 4, 4)),
    "a ReLU behind one of two equal calls": (lambda: Network(
        lambda self, x: self.b(F.relu(self.a(x)) + torch.tanh(self.a(x))),
        a=conv(8, 8, 3, padding=1), b=conv(8, 4, 1)), (8, 4, 4)),
    "equal calls on a tensor and its copy": (lambda: Network(
        lambda self, x: self.b(F.relu(self.a(x)) + self.a(x.clone().view_as(x))),
        a=conv(8, 8, 3, padding=1), b=conv(8, 4, 1)), (8, 4, 4)),
    "two equal calls as outputs": (lambda: Network(lambda self, x: (F.relu(self.a(x)), self.a(x), self.a(x)),
        a=conv(8, 8, 3, padding=1)), (8, 4, 4)),
    "the batch in the second dimension": (lambda: Network(lambda self, x: self.b(self.a(x.transpose(0, 1)).mean(0)),
        a=nn.Linear(8, 8), b=nn.Linear(8, 8)), (5, 8)),
    "integer inputs": (lambda: Network(
        lambda self, x: self.b(self.a(x).mean(1)), a=nn.Embedding(20, 16), b=nn.Linear(16, 8)), None),
    "a head tied to an embedding": (Tied, None),
    "a fused recurrent layer": (lambda: Network(lambda self, x: self.b(self.a(x)[0][:, -1]),
        a=nn.LSTM(8, 8, batch_first=True), b=nn.Linear(8, 8)), (5, 8)),
}  # fmt: skip
"""What must simply work; the shape of one sample, None for numbers of words."""

STAY_FLOAT = {
    "a transposed convolution": ["a"],
    "a fused recurrent layer": ["a"],
}
"""The layers that are reported as left in float."""
