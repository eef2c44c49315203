"""The outermost values of a grid are dropped by chance, until a layer does without them: DropBits."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from smpq.training.bits.chance import Chance
from smpq.training.bits.clustered import ClusteredWeight
from smpq.training.bits.rungs import Rungs, ratio
from smpq.training.bits.settings import CpqSettings
from smpq.training.lsq import LearnedWeight

_TEMPERATURE, _LOWEST, _HIGHEST = 2 / 3, -0.1, 1.1
"""Of the hard concrete distribution (Louizos et al., arXiv 1712.01312)."""
_TRIES = 12
"""Steps are tried in as many places below and above the present one."""


class BitDrop(Chance[ClusteredWeight]):
    """Multiplies what the highest bit adds to a weight by a mask, and learns the odds of the mask (DropBits).

    1. Values that only the present width has at the present step are the outer half of the grid, both signs alike. The
       mask is 0, 1, or between, by the hard concrete distribution.
    2. At each width a group begins with the steps of the smallest error on average over the mask, which are then
       learned. They stay where a group falls that needs the inner half only.
    """

    QUANTIZER: ClassVar[type[LearnedWeight]] = ClusteredWeight

    def __init__(self, rungs: Rungs, settings: CpqSettings, seed: int) -> None:
        super().__init__(rungs, settings, seed)
        for name in rungs.quantized:
            for _, quantizer in self._quantizers(name):
                quantizer.noise = settings.noise
        for name in rungs.open:
            self._land(name)

    def _drawn(self, odds: Tensor, noise: Tensor, done: float) -> Tensor:  # noqa: ARG002 - the same all the time
        soft = torch.sigmoid((odds + noise) / _TEMPERATURE)
        return (soft * (_HIGHEST - _LOWEST) + _LOWEST).clamp(0, 1)

    def _draw(self, quantizer: ClusteredWeight, share: Tensor | None) -> None:
        quantizer.kept = share

    def _logit(self, odds: float) -> float:
        return odds - _TEMPERATURE * math.log(-_LOWEST / _HIGHEST)

    def _missed(self, name: str) -> float:
        pairs = [(_errors(weight, quantizer), weight.numel()) for weight, quantizer in self._quantizers(name)]
        worse = sum(float((low - high).sum()) * count for (high, low), count in pairs)
        return worse / sum(count for _, count in pairs)

    def _land(self, name: str) -> None:
        self._restore_rung(name)
        kept = self._probability(name) if self.rungs.numbers[name] else 1.0
        for weight, quantizer in self._quantizers(name):
            _fit_step(weight, quantizer, kept)


def _errors(weight: Tensor, quantizer: ClusteredWeight, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the squared errors `[out]` over the squares of the weight, of the present width and of that below, when
    the steps are multiplied by `factor`.
    """
    with torch.no_grad():
        spread, axes = quantizer.spread(weight) * factor, tuple(range(1, weight.dim()))
        whole = float(weight.square().sum()) or 1.0
        errors = (
            (weight - grid.round_(weight / spread, *grid.limits) * spread).square().sum(axes) / whole
            for grid in (quantizer.grid, quantizer.below)
        )
        high, low = errors
    return high, low


def _fit_step(weight: Tensor, quantizer: ClusteredWeight, kept: float) -> None:
    """Multiply the step of each channel by what leaves the smallest error on average, when the present width is there
    with the probability `kept`.
    """
    most = ratio(quantizer.grid, quantizer.below)
    factors = torch.logspace(-1, 1, 1 + 2 * _TRIES, 2 * most).tolist()
    errors = torch.stack(
        [kept * high + (1 - kept) * low for high, low in (_errors(weight, quantizer, factor) for factor in factors)]
    )
    best = torch.tensor(factors).to(weight.device)[errors.argmin(0)]
    with torch.no_grad():
        quantizer.step.mul_(best)
