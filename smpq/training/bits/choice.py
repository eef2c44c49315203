"""Widths that are chosen by chance between neighbours, until the narrower one is certain: SDQ's first phase."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from calib.calibrate import Calibration
from smpq.training.bits.bins import bin_loss
from smpq.training.bits.chance import Chance
from smpq.training.bits.rungs import Rungs
from smpq.training.bits.settings import SdqSettings
from smpq.training.bits.stochastic import StochasticWeight
from smpq.training.lsq import LearnedWeight


class WidthChoice(Chance[StochasticWeight]):
    """Chooses between two widths with a step each (SDQ's DBPs).

    1. A group has its present width with the probability beta, else the next one down. Gumbel's softmax lets the
       gradient of the loss through (hard forward, soft backward).
    2. The quantisation error holds a width: beta times that of the present width and the rest times that below.
    """

    QUANTIZER: ClassVar[type[LearnedWeight]] = StochasticWeight

    def __init__(self, rungs: Rungs, settings: SdqSettings, calibration: Calibration, seed: int) -> None:
        """`calibration` has the steps that each width begins with; `seed` is that of the choices."""
        super().__init__(rungs, settings, seed)
        self._own = settings
        self._steps: dict[tuple[str, str], Tensor] = {}
        for name in rungs.open:
            for unit in rungs.units[name]:
                factor = rungs.graph.factor(unit.path)
                for chosen in rungs.ladders[name]:
                    scale = calibration.weight(unit, chosen).scale.to(factor.device)
                    self._steps[unit.path, chosen.weight.name] = scale / factor
        for name in rungs.open:
            self._look_below(name)

    def refine(self) -> Tensor | None:
        """Return the bin regularisation of all layers with integer weights."""
        if not self._own.bins:
            return None
        names = self.rungs.quantized
        losses = [bin_loss(weight, quantizer) for name in names for weight, quantizer in self._quantizers(name)]
        return self._own.bins * torch.stack(losses).sum()

    def _drawn(self, odds: Tensor, noise: Tensor, done: float) -> Tensor:
        own = self._own
        temperature = own.first_temperature + (own.last_temperature - own.first_temperature) * min(done, 1.0)
        # the difference of two of Gumbel's variables is logistic
        soft = torch.sigmoid((odds + noise) / temperature)
        return (soft > 0.5).float() + (soft - soft.detach())

    def _draw(self, quantizer: StochasticWeight, share: Tensor | None) -> None:
        quantizer.chosen = share

    def _held(self, name: str) -> float:
        return self._own.error * self._missed(name)

    def _missed(self, name: str) -> float:
        """Return how much larger the relative squared error is at the width below, over all weights of a group."""
        pairs = [(quantizer.errors(weight), weight.numel()) for weight, quantizer in self._quantizers(name)]
        return sum((low - high) * count for (high, low), count in pairs) / sum(count for _, count in pairs)

    def _land(self, name: str) -> None:
        with torch.no_grad():
            for _, quantizer in self._quantizers(name):
                quantizer.step.copy_(quantizer.below_step)
        if self.rungs.numbers[name]:
            self._look_below(name)

    def _look_below(self, name: str) -> None:
        self._restore_rung(name)
        with torch.no_grad():
            for unit, (_, quantizer) in zip(self.rungs.units[name], self._quantizers(name), strict=True):
                quantizer.below_step.copy_(self._steps[unit.path, quantizer.below.name])
