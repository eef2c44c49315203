"""A MIMO detector, and the SNR it needs: `smpq run --task examples.mimo:task --weights W --target simulate`.

Rayleigh fading, QPSK or 16-QAM: every real number sent is one of 2 or 4 levels. The network
(`examples/mimo_detector.py`) has five inputs, what is received and what a receiver computes. Data are drawn from
seeds. W is made by `benchmarks/train_mimo.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from calib.errors import UserError
from calib.files.weights import load_weights, restore
from calib.task import Batch
from examples.mimo_detector import Detector

ERROR_RATE = 1e-3
_AT_ONCE = 1024


@dataclass(frozen=True)
class Setting:
    """Antennas and `levels` of a real number; `snrs_db` are evaluated, and training draws SNRs in `trained_db`, dB."""

    transmit: int = 8
    receive: int = 8
    levels: int = 2
    snrs_db: tuple[float, ...] = (12.0, 13.0, 14.0, 15.0, 16.0, 17.0)
    trained_db: tuple[float, float] = (4.0, 24.0)

    @property
    def values(self) -> Tensor:
        """The levels `[levels]`, of mean power 1."""
        values = 2.0 * torch.arange(self.levels) - (self.levels - 1)
        return values / values.square().mean().sqrt()


SETTINGS = {
    "task": Setting(),
    "task_16x16": Setting(16, 16),
    "task_qam16": Setting(levels=4, snrs_db=(18.0, 20.0, 22.0, 24.0, 26.0, 28.0), trained_db=(10.0, 34.0)),
}
"""By the name of the function that makes the task."""


class Sent(NamedTuple):
    """What was sent."""

    levels: Tensor
    """Numbers of the levels, `[n, 2T]`."""
    symbols: Tensor
    """Their values, `[n, 2T]`."""
    place: Tensor
    """Which of the evaluated SNRs, `[n]`."""


class Mimo:
    """BER against SNR, of channels that are drawn from a seed; `count` channels at each SNR are evaluated.

    The figure is the SNR at which the BER is 1e-3, in dB below 40 dB so that higher is better.
    """

    name = "mimo"
    metric_name = "dB below 40 dB at BER 1e-3"
    metric_point = 0.1

    def __init__(
        self, setting: Setting, model: nn.Module, count: int = 2048, epoch: int = 50_000, batch: int = 128
    ) -> None:
        """`epoch` samples are a pass of the training, in batches of `batch`."""
        self.setting = setting
        self._model, self._count, self._epoch, self._batch = model, count, epoch, batch

    def model(self) -> nn.Module:
        """Return the trained network."""
        return self._model.eval()

    def calibration(self) -> list[Batch]:
        """Return 1024 channels at SNRs as in training."""
        return [draw(self.setting, 128, seed) for seed in range(1_000_000, 1_000_008)]

    def evaluation(self) -> Iterator[Batch]:
        """Return `count` channels at each of the SNRs."""
        for place in range(len(self.setting.snrs_db)):
            for index, start in enumerate(range(0, self._count, _AT_ONCE)):
                size = min(_AT_ONCE, self._count - start)
                yield draw(self.setting, size, 2_000_000 + 10_000 * place + index, place)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Return new channels in every epoch."""
        count = self._epoch // self._batch
        for index in range(count):
            yield draw(self.setting, self._batch, 10_000_000 + epoch * count + index)

    def loss(self, output: Tensor, target: Sent) -> Tensor:
        """Return the mean squared error `[n]`."""
        return (output - target.symbols).square().mean(1)

    def divergence(self, output: Tensor, taught: Tensor) -> Tensor:
        """Return how far the soft symbols are from those of the float network, `[n]`."""
        return (output - taught).square().mean(1)

    def records(self, output: Tensor, target: Sent) -> list[tuple[int, int, int]]:
        """Return the place of the SNR, the wrong bits and the bits of each sample."""
        wrong, bits = wrong_bits(self.setting, output, target)
        return list(zip(target.place.tolist(), wrong.tolist(), [bits] * len(output), strict=True))

    def metric_of(self, records: Sequence[tuple[int, int, int]]) -> float:
        """Return 40 dB less the SNR at which the BER is 1e-3; at most that of the SNRs' ends, where all are on one
        side.
        """
        places, wrong, bits = np.array(records).T
        size = len(self.setting.snrs_db)
        sums = [np.bincount(places, each, size) for each in (wrong, bits)]
        seen = sums[1] > 0
        rates = (sums[0][seen] + 0.5) / (sums[1][seen] + 1)
        return 40.0 - snr_at(np.array(self.setting.snrs_db)[seen].tolist(), rates.tolist())


def snr_at(snrs_db: Sequence[float], error_rates: Sequence[float], wanted: float = ERROR_RATE) -> float:
    """Return the SNR in dB at which an error rate falls to what is wanted: log10 of it is interpolated along a line.

    `snrs_db` rise. The first or the last of them where all rates are below or above; rates are above zero.
    """
    logs = np.log10(error_rates) - np.log10(wanted)
    below = np.flatnonzero(logs <= 0)
    if not len(below):
        return float(snrs_db[-1])
    if below[0] == 0:
        return float(snrs_db[0])
    high, low = logs[below[0] - 1], logs[below[0]]
    left, right = snrs_db[below[0] - 1], snrs_db[below[0]]
    return float(left + (right - left) * high / (high - low))


def wrong_bits(setting: Setting, output: Tensor, target: Sent) -> tuple[Tensor, int]:
    """Return the wrong bits of each sample `[n]`, and how many bits a sample has. Levels are coded as Gray does."""
    nearest = (output[:, :, None] - setting.values).abs().argmin(2)
    differ = (nearest ^ (nearest >> 1)) ^ (target.levels ^ (target.levels >> 1))
    width = (setting.levels - 1).bit_length()
    wrong = torch.stack([((differ >> place) & 1).sum(1) for place in range(width)]).sum(0)
    return wrong, width * output.shape[1]


def draw(setting: Setting, count: int, seed: int, place: int | None = None) -> Batch:
    """Return channels, what is received over them, and what a receiver computes: the inputs of `Detector.forward`.

    At one of the evaluated SNRs, or at SNRs drawn as in training. The SNR is that of a receive antenna.
    """
    numbers = torch.Generator().manual_seed(seed)
    t, r = setting.transmit, setting.receive
    real, imaginary = torch.randn(2, count, r, t, generator=numbers) / (2 * t) ** 0.5
    h = torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)
    levels = torch.randint(setting.levels, (count, 2 * t), generator=numbers)
    low, high = setting.trained_db
    drawn = torch.rand(count, 1, generator=numbers) * (high - low) + low
    snr_db = drawn if place is None else torch.full((count, 1), setting.snrs_db[place])
    noise, symbols = 10 ** (-snr_db / 20), setting.values[levels]
    y = (h @ symbols[:, :, None])[:, :, 0] + noise * torch.randn(count, 2 * r, generator=numbers)
    power = noise.square()
    inverse = torch.linalg.inv(h.transpose(1, 2) @ h + power[:, :, None] * torch.eye(2 * t))
    estimate = (inverse @ (h.transpose(1, 2) @ y[:, :, None]))[:, :, 0]
    variance = power * inverse.diagonal(dim1=1, dim2=2)
    where = torch.full((count,), place or 0)
    return Batch((y, h, estimate, variance, noise), Sent(levels, symbols, where))


def fit(
    setting: Setting, model: Detector, steps: int, batch: int = 256, say: Callable[[str], None] = lambda _: None
) -> Detector:
    """Train in float with Adam, every step of the network counted by log(k + 1), then set the buckets."""
    # gains cancel in float: their gradients are rounding, which Adam would follow
    moved = [parameter for name, parameter in model.named_parameters() if not name.endswith("gains")]
    optimizer = torch.optim.Adam(moved, 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-5)
    for step in range(steps):
        given = draw(setting, batch, 100_000_000 + step)
        errors = [(found - given.target.symbols).square().mean() for found in model.estimates(*given.inputs)]
        loss = torch.stack([error * float(np.log(number + 2)) for number, error in enumerate(errors)]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(steps // 20, 1) == 0:
            say(f"step {step + 1} of {steps}: squared error of the last step {float(errors[-1].detach()):.4f}")
    return follow(setting, model)


def follow(setting: Setting, model: Detector) -> Detector:
    """Set the edges such that the buckets are equally full."""
    buckets = len(model.edges) + 1
    level = draw(setting, 4096, 99_999_999).inputs[3].mean(1)
    model.edges.copy_(level.quantile(torch.arange(1, buckets) / buckets))
    return model


def task(data: Path | None, weights: Path | None) -> Mimo:  # noqa: ARG001 - data are drawn
    """Make the task of 8 x 8 antennas and QPSK; name it `examples.mimo:task`."""
    return _task("task", weights)


def task_qam16(data: Path | None, weights: Path | None) -> Mimo:  # noqa: ARG001 - as task
    """Make the task of 16-QAM; name it `examples.mimo:task_qam16`."""
    return _task("task_qam16", weights)


def task_16x16(data: Path | None, weights: Path | None) -> Mimo:  # noqa: ARG001 - as task
    """Make the task of 16 x 16 antennas and QPSK; name it `examples.mimo:task_16x16`."""
    return _task("task_16x16", weights)


def _task(name: str, weights: Path | None) -> Mimo:
    if weights is None:
        raise UserError("this task needs --weights, a file that benchmarks/train_mimo.py makes")
    model = Detector(SETTINGS[name].values)
    restore(model, load_weights(weights), weights)
    return Mimo(SETTINGS[name], model)
