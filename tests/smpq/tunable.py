"""A small network with every kind of BatchNorm, its data, and a plan: what the tests of training work on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.network.fold import Folded, trace_folded
from calib.network.graph import TracedModel
from calib.network.units import Unit, find_units
from calib.task import Batch
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.training.finetune import Subject
from smpq.training.trainable import TrainableGraph


class Normed(nn.Module):
    """BatchNorm behind convolutions with and without bias, negative gains, one of zero, a repeated layer, and a norm
    that stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.deep_norm = nn.BatchNorm2d(6, eps=1e-3, momentum=None)
        self.plain = nn.Conv2d(6, 6, 1)
        self.hidden = nn.Linear(6, 8)
        self.hidden_norm = nn.BatchNorm1d(8, affine=False)
        self.repeated = nn.Linear(8, 8)
        self.last_norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(x))), 2)
        x = F.relu(self.deep_norm(self.deep(x)) + x)
        x = self.plain(x).mean((2, 3))
        x = self.hidden_norm(self.hidden(x))
        x = self.last_norm(F.relu(self.repeated(F.relu(self.repeated(x)))))
        return self.head(x)


@functools.cache
def _network() -> Normed:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = Normed()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                module.weight[1::2] *= -1
        model.stem_norm.weight[2] = 0
        inputs = [images(seed, 64) for seed in range(30)]
        for x in inputs:  # statistics of the data it will see
            model(x)
        model.eval()
        outputs = torch.cat([model(x) for x in inputs])
        model.head.bias -= outputs.mean(0)  # every class occurs
        model.head.weight *= 3 / outputs.std()
        model.head.bias *= 3 / outputs.std()
        return model


def network() -> Normed:
    """The same weights every time, in a module of one's own."""
    return copy.deepcopy(_network())


def images(seed: int, count: int) -> Tensor:
    """Noise around a level of its own for every image and channel: what the classes depend on."""
    generator = torch.Generator().manual_seed(seed)
    level = 2 * torch.randn(count, 2, 1, 1, generator=generator)
    return level + torch.randn(count, 2, 8, 8, generator=generator)


def batch_of(seed: int, count: int = 32) -> Batch:
    x = images(seed, count)
    with torch.no_grad():
        return Batch((x,), _network()(x).argmax(1))


class Task:
    name = "normed"
    metric_name = "accuracy"

    def __init__(self, passes: int = 6) -> None:
        self.passes = passes

    def model(self) -> nn.Module:
        return network()

    def calibration(self) -> list[Batch]:
        return [batch_of(1), batch_of(2)]

    evaluation = calibration

    def training(self, epoch: int) -> Iterator[Batch]:
        for index in range(self.passes):
            yield batch_of(1000 + 100 * epoch + index)

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).float()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")


@dataclass
class Tunable:
    original: nn.Module
    folded: tuple[Folded, ...]
    traced: TracedModel
    units: tuple[Unit, ...]
    batches: list[Batch]
    fake: FakeQuantizer

    def formats(self, default: str, **others: str) -> dict[str, Format]:
        return {unit.path: Format.from_text(others.get(unit.path, default)) for unit in self.units}

    def graph(self) -> TrainableGraph:
        return TrainableGraph(self.traced, self.units, self.original, self.folded)

    def subject(self, default: str, task: object = None, **others: str) -> Subject:
        plan = self.fake.plan(self.formats(default, **others))
        return Subject(
            task or Task(), self.traced, self.units, self.original, self.folded, plan, "the policy", "the fingerprint"
        )  # type: ignore[arg-type]


@functools.cache
def tunable(rules: QdqRules | None = None, rounding: str = "gptq") -> Tunable:
    batches = Task().calibration()
    model = network()
    example = (batches[0].inputs[0][:2],)
    traced, folded = trace_folded(model, example)
    units, _ = find_units(traced)
    rules = rules or QdqRules("affine")
    calibration = Calibration(traced, units, batches, CalibrationSettings("mse", rounding, rules.scheme))
    return Tunable(model, folded, traced, units, batches, FakeQuantizer(traced, units, calibration, rules))
