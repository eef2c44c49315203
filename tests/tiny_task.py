"""A task that runs in a second, whose single parts go wrong when `TINY_FAULT` names them."""

import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smpq.value.divergence import divergence

FAULT = "TINY_FAULT"
SAMPLES = 8


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.head = nn.Linear(8 * 3 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.flatten(1))


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Bare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


class Overflowing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e30 * 1e30


class Labels(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class Smooth(Net):
    """The same weights, another function."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.second(F.gelu(self.first(x)))).flatten(1))


MODELS = {
    "other forward": Smooth,
    "untraceable": Branching,
    "no layer": Bare,
    "infinite output": Overflowing,
    "no numbers": Labels,
}


def network(make: type[nn.Module] = Net) -> nn.Module:
    """The same weights every time, and every class as likely as the others."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = make()
        if isinstance(net, Net):
            net.head.bias -= Net.forward(net, images(1).flatten(0, 1)).mean(0)
    return net


def images(seed: int) -> Tensor:
    return torch.randn(2, SAMPLES, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Two batches, labelled with what the float network says."""
    with torch.no_grad():
        return [(inputs, network()(inputs).argmax(1)) for inputs in images(seed)]


class Tiny:
    name = "tiny"
    metric_name = "accuracy"

    def __init__(self, data: object = None, weights: object = None) -> None:
        self.calls = 0
        if self.wrong("point"):
            self.metric_point = 0.0
        if self.wrong("factory"):
            raise RuntimeError("no licence")

    def wrong(self, part: str) -> bool:
        return os.environ.get(FAULT) == part

    def model(self) -> nn.Module:
        if self.wrong("model"):
            raise RuntimeError("checkpoint lost")
        if self.wrong("no module"):
            return {"weights": 1}  # type: ignore[return-value]
        net = network(MODELS.get(os.environ.get(FAULT, ""), Net))
        if self.wrong("nan weights"):
            net.second.weight.data[1, 2, 0, 0] = float("nan")
        if self.wrong("other weights"):
            net.second.weight.data *= 2
        return net.train() if self.wrong("training mode") else net.eval()

    def calibration(self) -> object:
        found = batches(1)
        if self.wrong("other data"):
            found[1][0][3, 0, 0, 0] += 1
        if self.wrong("nan data"):
            found[1][0][3, 0, 0, 0] = float("nan")
        if self.wrong("empty"):
            return []
        if self.wrong("one shot"):
            return iter(found)
        if self.wrong("one shot of one"):
            return iter(found[:1])
        if self.wrong("loader"):
            return self.broken_loader()
        if self.wrong("shapes"):
            found[1] = (torch.zeros(SAMPLES, 1, 8, 8), found[1][1])
        if self.wrong("no pairs"):
            return [inputs for inputs, _ in found]
        if self.wrong("targets"):
            found[0] = (found[0][0], found[0][1][:3])
        return found

    def broken_loader(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise OSError("disk on fire")
        yield

    def evaluation(self) -> object:
        if self.wrong("evaluation"):
            raise RuntimeError("test set on strike")
        return [] if self.wrong("empty evaluation") else batches(2)

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        if self.wrong("metric"):
            raise KeyError("top1")
        right = (output.argmax(1) == target).float()
        if self.wrong("metric drawn"):
            return right + torch.rand(())
        if self.wrong("metric complex"):
            return torch.complex(right, right)
        return right.mean() if self.wrong("metric length") else right

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        if self.wrong("loss") and self.calls > 5:
            raise ZeroDivisionError("after a while")
        return F.cross_entropy(output, target, reduction="none")


class Exacting(Tiny):
    """A task of whose divergence, the usual one, no amount is too little to be noticed: its searches go on."""

    def divergence(self, output: Tensor, float_output: Tensor) -> Tensor:
        return divergence(output, float_output)


class Partial:
    name = "partial"
    metric_name = "accuracy"

    def model(self) -> nn.Module:
        return Net()


def scripted(data: object = None, weights: object = None) -> Tiny:
    """A task whose class is made on the way, so that no other process can import it."""

    class Scripted(Tiny):
        pass

    return Scripted()


task = Tiny
exacting = Exacting
partial = Partial()
