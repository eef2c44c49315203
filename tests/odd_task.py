"""Tasks whose network is legitimate and odd, or cannot be an engine; `ODD_NETWORK` names it."""

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

ODD = "ODD_NETWORK"


class Base(nn.Module):
    """Two convolutions and a linear layer on `[n, 2, 4, 4]`."""

    samples = (8, 8)
    last = 8
    requires_grad = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(96, 3)
        self.calls = 0
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(1))

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))

    def forward(self, x: Tensor) -> object:
        return self.end(self.head(self.body(x).flatten(1)))

    def end(self, y: Tensor) -> object:
        return y


class ZeroDimensional(Base):
    def end(self, y: Tensor) -> object:
        return {"mean": y.mean(), "scores": y}


class WithNone(Base):
    def end(self, y: Tensor) -> object:
        return None, y, {"more": None, "again": y}


class OfTheBatch(Base):
    def end(self, y: Tensor) -> object:
        return y, y.mean(0), y.transpose(0, 1)


class InputChanged(Base):
    def forward(self, x: Tensor) -> object:
        x[:, 0] = x[:, 0] * 0.5
        return super().forward(x.mul_(2))


class InputReturned(Base):
    def forward(self, x: Tensor) -> object:
        return super().forward(x), x


class BufferCounts(Base):
    def end(self, y: Tensor) -> object:
        self.count += 1
        return y


class NeedsGradient(Base):
    requires_grad = True


class TwiceOnOneInput(Base):
    def forward(self, x: Tensor) -> object:
        y = F.relu(self.first(x))
        return self.head((self.second(y) + F.relu(self.second(y))).flatten(1))


class Named(Base):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleDict({"it's": nn.Conv2d(6, 6, 1), "a, b=c#2": nn.Conv2d(6, 6, 1)})

    def body(self, x: Tensor) -> Tensor:
        return self.more["a, b=c#2"](F.relu(self.more["it's"](super().body(x))))


class OneSample(Base):
    samples = (1,) * 8
    last = 1

    def forward(self, x: Tensor) -> object:
        assert x.shape[0] == 1
        return self.head(self.body(x).view(1, -1))


class EightSamples(Base):
    last = 3

    def forward(self, x: Tensor) -> object:
        return self.head(self.body(x).view(8, -1))


class DeadChannels(Base):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.gains = torch.tensor([1.0, 1e-4, 1e-10, 1e-20, 0.0, 1e4])[:, None, None]

    def body(self, x: Tensor) -> Tensor:
        return torch.tanh(self.depthwise(super().body(x) * self.gains))


class TinyNumbers(Base):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.first.weight *= 1e-15
            self.first.bias *= 1e-15
            self.second.bias.zero_()

    def body(self, x: Tensor) -> Tensor:
        return super().body(x) * 1e15


class EmptyModel(Base):
    def end(self, y: Tensor) -> object:
        return y, y.new_zeros(y.shape[0], 0)


class OtherForOne(Base):
    def end(self, y: Tensor) -> object:
        return y.flip(1) if y.shape[0] == 1 else y


class UpToFour(Base):
    def end(self, y: Tensor) -> object:
        return y if y.shape[0] <= 4 else 2 * y


class Counts(Base):
    def end(self, y: Tensor) -> object:
        self.calls += 1
        return y * min(self.calls, 100)


class BufferUsed(Base):
    def end(self, y: Tensor) -> object:
        self.count += 1
        return y + self.count


class NormInTraining(Base):
    def end(self, y: Tensor) -> object:
        self.norm.train()
        return self.norm(y)


class DropInTraining(Base):
    def end(self, y: Tensor) -> object:
        self.drop.training = True
        return self.drop(y)


class Quoted(Base):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleDict({'a "b"\nc': nn.Conv2d(6, 6, 1)})

    def body(self, x: Tensor) -> Tensor:
        return self.more['a "b"\nc'](super().body(x))


class Keyword(Base):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleDict({"class": nn.Conv2d(6, 6, 1)})

    def body(self, x: Tensor) -> Tensor:
        return self.more["class"](super().body(x))


class OneSampleOfEight(OneSample):
    samples = (8, 8)


class ReturnsANumber(Base):
    def end(self, y: Tensor) -> object:
        return y, 3


class ReturnsTheSize(Base):
    def end(self, y: Tensor) -> object:
        return y, y.shape[0]


class ReturnsComplex(Base):
    def end(self, y: Tensor) -> object:
        return torch.complex(y, y)


@dataclass
class Answer:
    scores: Tensor


class ReturnsAnAnswer(Base):
    def end(self, y: Tensor) -> object:
        return Answer(y)


class SkippedOnly(Base):
    def forward(self, x: Tensor) -> object:
        rows = self.first.weight.flatten(1)
        return torch.relu(x.flatten(1)[:, :18] @ rows.T) @ rows


class Branches(Base):
    def end(self, y: Tensor) -> object:
        return y if y.mean().item() > 0 else -y


class Squeezed(Base):
    def end(self, y: Tensor) -> object:
        return y.squeeze(0)


class Lazy(nn.Module):
    samples, last, requires_grad = (8, 8), 8, False

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Task:
    """Judges by the first output that counts samples."""

    name = "odd"
    metric_name = "sum"

    def __init__(self, data: object = None, weights: object = None) -> None:
        self.network = globals()[os.environ[ODD]]

    def model(self) -> nn.Module:
        return self.network().eval()

    def calibration(self) -> object:
        return self.batches(1, self.network.samples)

    def evaluation(self) -> object:
        return self.batches(2, (*self.network.samples[:-1], self.network.last))

    def batches(self, seed: int, samples: tuple[int, ...]) -> object:
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(count, 2, 4, 4, generator=generator) for count in samples]
        return [(x.requires_grad_(self.network.requires_grad), torch.zeros(len(x))) for x in inputs]

    def scores(self, output: object) -> Tensor:
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        return next(leaf for leaf in leaves if leaf.dim() == 2)

    def metric(self, output: object, target: Tensor) -> Tensor:
        return self.scores(output).sum(1)

    def divergence(self, output: object, float_output: object) -> Tensor:
        return (self.scores(output) - self.scores(float_output)).square().sum(1)

    def loss(self, output: object, target: Tensor) -> Tensor:
        return -self.scores(output).sum(1)


task = Task
