"""Value functions on a small residual network, made of what a worker can import, and tasks that go wrong there."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calib.errors import UserError
from calib.formats.format import FP32
from calib.task import Batch
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.value import PolicyValue
from tests.smpq.problems import W2A8, W4A16, W8A8, residual

OUTPUTS = QdqRules("affine", outputs=True, integer_bias=True)


class Task:
    name, metric_name = "toy", "top-1"

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).float()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")


class Refusing(Task):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        raise UserError("the labels are missing: download them")


class Targeted(Task):
    def divergence(self, output: Tensor, float_output: Tensor, target: Tensor) -> Tensor:
        return (output - float_output).abs().mean(1) * target


class Deadly(Task):
    """Ends every process but the one that made it."""

    def __init__(self) -> None:
        self.at_home = os.getpid()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if os.getpid() != self.at_home:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(output, target)


def ends_at_once(_connection: object) -> None:
    os._exit(1)


network = functools.cache(residual)
"""Traced and calibrated once in a process, whatever is computed on it."""


def compute(task: object = None, value: str = "kl", rules: QdqRules = OUTPUTS, samples: int = 40) -> PolicyValue:
    given = network()
    groups = find_groups(given.traced, given.units)
    space = Space(groups, {group.name: (W8A8, W4A16, W2A8, FP32) for group in groups}, FP32)
    generator = torch.Generator().manual_seed(1)
    batches = [
        Batch((torch.randn(n, 3, 8, 8, generator=generator),), torch.randint(0, 5, (n,), generator=generator))
        for n in (samples, 7)
    ]
    quantizer = FakeQuantizer(given.traced, given.units, given.calibration, rules)
    return PolicyValue(quantizer, space, task or Task(), batches, value)


def drawn(space: Space, count: int, seed: int = 0) -> list[Policy]:
    generator = np.random.default_rng(seed)
    return [
        Policy({name: row[int(generator.integers(len(row)))] for name, row in space.formats.items()})
        for _ in range(count)
    ]


def main() -> None:
    """Start a worker, say who it is, and keep it busy, until somebody ends this process."""
    from smpq.value.workers.local import LocalWorkerSource
    from smpq.value.workers.pool import WorkerPool

    torch.set_num_threads(1)
    pool, value = WorkerPool(LocalWorkerSource(1)), compute(samples=200)
    shared = pool.compute(value)
    for number in range(100_000):
        for _ in shared(drawn(value.space, 60, number)):
            sys.stdout.write(" ".join(map(str, pool.pids())) + "\n")
            sys.stdout.flush()
        time.sleep(0)


if __name__ == "__main__":
    main()
