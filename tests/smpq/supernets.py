"""A small network with BatchNorm and its data, as a supernet: what the tests of the supernet work on."""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, formats_from_text
from calib.network.fold import Folded, trace_folded
from calib.network.graph import TracedModel
from calib.network.units import Unit, find_units
from calib.task import Batch
from smpq.problem.groups import find_groups
from smpq.problem.policy import Space
from smpq.supernet.network import Supernet, SupernetSubject

FORMATS = "w2a4,w4a4,w2a8,w4a8"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(self.deep(x)).mean((2, 3)))


def network() -> Net:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        net = Net().eval()
        net.norm.running_var.uniform_(0.5, 1.5)
        net.norm.weight[1] = -0.7
        x = torch.randn(256, 2, 8, 8)
        net.head.weight *= 4
        net.head.bias -= net(x).mean(0)
    return net


def batch_of(seed: int, count: int = 32) -> Batch:
    x = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return Batch((x,), network()(x).argmax(1))


class Task:
    name = "net"
    metric_name = "accuracy"

    def __init__(self, data: object = None, weights: object = None) -> None:
        pass

    def model(self) -> nn.Module:
        return network()

    def calibration(self) -> list[Batch]:
        return [batch_of(1), batch_of(2), batch_of(3)]

    evaluation = calibration

    def training(self, epoch: int) -> Iterator[Batch]:
        for index in range(4):
            yield batch_of(1000 + 100 * epoch + index)

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).float()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")


class Untrainable(Task):
    training = None  # type: ignore[assignment]


@cache
def calibrated(rounding: str) -> tuple[Net, tuple[Folded, ...], TracedModel, tuple[Unit, ...], Calibration]:
    """Made once: a supernet changes none of it."""
    model, batches = network(), Task().calibration()
    example = (batches[0].inputs[0][:2],)
    traced, folded = trace_folded(model, example)
    units, _ = find_units(traced)
    return model, folded, traced, units, Calibration(traced, units, batches, CalibrationSettings(rounding=rounding))


def subject(
    formats: str = FORMATS, task: object = None, rounding: str = "nearest", fingerprint: str = "net"
) -> SupernetSubject:
    task = task or Task()
    model, folded, traced, units, calibration = calibrated(rounding)
    groups = find_groups(traced, units)
    space = Space(groups, {group.name: formats_from_text(formats) for group in groups}, FP32)
    return SupernetSubject(task, traced, model, folded, space, calibration, "affine",  # type: ignore[arg-type]
                           fingerprint)  # fmt: skip


def supernet(formats: str = FORMATS, **options: object) -> Supernet:
    return Supernet(subject(formats, **options))  # type: ignore[arg-type]
