"""Widths that are chosen by chance between neighbours, until the narrower one is certain: SDQ's first phase."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from calib.calibrate import Calibration
from smpq.training.bits.bins import bin_loss
from smpq.training.bits.finder import Finder
from smpq.training.bits.pressure import Pressure
from smpq.training.bits.rungs import Rungs
from smpq.training.bits.settings import SdqSettings
from smpq.training.bits.stochastic import StochasticWeight
from smpq.training.lsq import LearnedWeight

_SURE = 3.0
"""The log-odds of a width that was just reached: a probability of 0.95."""
_MOST = 0.05
"""The largest natural gradient of the task's loss that one batch may have: it is a rare and large sample."""

_LEAST_SHARE = 1e-6
"""Of the budget, that a width may save at least to be counted."""


class WidthChoice(Finder):
    """Draws the width of each group anew in every step, and learns the probabilities (SDQ's DBPs).

    1. A group has its present width with the probability beta, else the next one down. Gumbel's softmax lets the
       gradient of the loss through (hard forward, soft backward).
    2. The log-odds follow the natural gradient, which is that by beta itself: of the task's loss; of the quantisation
       error, beta times that of the present width and the rest times that below; and of the pressure times the share of
       the budget that the present width costs more.
    3. A group whose beta is below `least` falls to the next width, and begins there with the log-odds 3.
    """

    QUANTIZER: ClassVar[type[LearnedWeight]] = StochasticWeight

    def __init__(self, rungs: Rungs, settings: SdqSettings, calibration: Calibration, seed: int) -> None:
        """`calibration` has the steps that each width begins with; `seed` is that of the choices."""
        self.rungs = rungs
        self._settings = settings
        self._seed = seed
        self._steps: dict[tuple[str, str], Tensor] = {}
        for name in rungs.open:
            for unit in rungs.units[name]:
                factor = rungs.graph.factor(unit.path)
                for chosen in rungs.ladders[name]:
                    scale = calibration.weight(unit, chosen).scale.to(factor.device)
                    self._steps[unit.path, chosen.weight.name] = scale / factor
        self._odds = {name: torch.tensor(_SURE, requires_grad=True) for name in rungs.open}
        for name in rungs.open:
            self._look_below(name)
        fall = _SURE - math.log(settings.least / (1 - settings.least))
        most = max(rungs.saved(name) for name in rungs.open) / self._limit
        # the largest group falls within one interval
        first = fall / (settings.probability_rate * settings.interval * max(most, _LEAST_SHARE))
        self.pressure = Pressure(first, rungs.excess, settings.growth)

    def begin(self, step: int, done: float) -> None:
        """Draw the widths."""
        own = self._settings
        temperature = own.first_temperature + (own.last_temperature - own.first_temperature) * min(done, 1.0)
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**63)
        for name, odds in self._odds.items():
            uniform = torch.rand((), generator=generator).clamp(1e-6, 1 - 1e-6)
            odds.grad = None
            if name not in self.rungs.open:
                continue
            # the difference of two of Gumbel's variables is logistic
            soft = torch.sigmoid((odds + torch.log(uniform) - torch.log1p(-uniform)) / temperature)
            chosen = (soft > 0.5).float() + (soft - soft.detach())
            for _, quantizer in self._quantizers(name):
                quantizer.chosen = chosen.to(quantizer.step.device)

    def after(self, rate: float) -> None:  # noqa: ARG002 - log-odds have a rate of their own
        """Move the log-odds."""
        own = self._settings
        for name in self.rungs.open:
            odds = self._odds[name]
            beta = float(torch.sigmoid(odds.detach()))
            by_task = float(odds.grad) / (beta * (1 - beta)) if odds.grad is not None else 0.0
            pull = self.pressure.weight * self.rungs.saved(name) / self._limit
            by_error = own.error * self._error(name)
            total = max(-_MOST, min(_MOST, by_task)) + pull - by_error
            with torch.no_grad():
                odds.sub_(own.probability_rate * total).clamp_(max=_SURE)

    def adjust(self, done: float) -> None:
        """Let groups fall that are sure to, then steer by the expected cost."""
        for name in self.rungs.open:
            if not self.rungs.met and float(torch.sigmoid(self._odds[name].detach())) < self._settings.least:
                self._fall(name)
        self.pressure.steer(done, self._expected())

    def force(self) -> None:
        """Let the group fall whose error grows least for what that saves."""
        rungs = self.rungs
        self._fall(min(rungs.open, key=lambda name: self._error(name) / max(rungs.saved(name), 1e-30)))

    def settle(self) -> None:
        """Choose no more: every group has its present width."""
        for name in self._odds:
            for _, quantizer in self._quantizers(name):
                quantizer.chosen = None

    def refine(self) -> Tensor | None:
        """Return the bin regularisation of all layers."""
        if not self._settings.bins:
            return None
        losses = [bin_loss(weight, quantizer) for name in self._odds for weight, quantizer in self._quantizers(name)]
        return self._settings.bins * torch.stack(losses).sum()

    def to_json(self) -> dict[str, float]:
        """The pressure, where the cost began, and the log-odds."""
        found = {"pressure": self.pressure.weight, "start": self.pressure.start}
        return found | {f"odds/{name}": float(odds.detach()) for name, odds in self._odds.items()}

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Take them back."""
        self.pressure = Pressure(float(numbers["pressure"]), float(numbers["start"]), self._settings.growth)
        for name, odds in self._odds.items():
            odds.data.fill_(float(numbers[f"odds/{name}"]))
            if self.rungs.numbers[name]:
                for _, quantizer in self._quantizers(name):
                    quantizer.below = self.rungs.below(name)

    @property
    def _limit(self) -> float:
        return next(ceiling.limit for ceiling in self.rungs.ceilings if ceiling.model is self.rungs.binding)

    def _quantizers(self, name: str) -> list[tuple[Tensor, StochasticWeight]]:
        found: list[tuple[Tensor, StochasticWeight]] = []
        for weight, quantizer in self.rungs.quantizers(name):
            assert isinstance(quantizer, StochasticWeight)
            found.append((weight, quantizer))
        return found

    def _look_below(self, name: str) -> None:
        below = self.rungs.below(name)
        for unit, (_, quantizer) in zip(self.rungs.units[name], self._quantizers(name), strict=True):
            with torch.no_grad():
                quantizer.below_step.copy_(self._steps[unit.path, below.name])
            quantizer.below = below

    def _fall(self, name: str) -> None:
        steps = [quantizer.below_step.detach().clone() for _, quantizer in self._quantizers(name)]
        self.rungs.lower(name)
        with torch.no_grad():
            for (_, quantizer), step in zip(self._quantizers(name), steps, strict=True):
                quantizer.step.copy_(step)
                quantizer.chosen = None
            self._odds[name].fill_(_SURE)
        if self.rungs.numbers[name]:
            self._look_below(name)

    def _error(self, name: str) -> float:
        """Return how much larger the relative squared error is at the width below, over all weights of a group."""
        pairs = [(quantizer.errors(weight), weight.numel()) for weight, quantizer in self._quantizers(name)]
        return sum((low - high) * count for (high, low), count in pairs) / sum(count for _, count in pairs)

    def _expected(self) -> float:
        rungs = self.rungs
        saved = sum(rungs.saved(name) * float(1 - torch.sigmoid(self._odds[name].detach())) for name in rungs.open)
        return rungs.excess - saved / self._limit
