"""Widths that are kept by chance, until a layer is sure that it does without one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from smpq.training.bits.finder import Finder
from smpq.training.bits.pressure import Pressure
from smpq.training.bits.rungs import Rungs
from smpq.training.bits.settings import ChanceSettings
from smpq.training.lsq import LearnedWeight

_SURE = 3.0
"""The log-odds of a width that was just reached: a probability of 0.95."""
_MOST = 0.05
"""The largest natural gradient of the task's loss that one batch may have: it is a rare and large sample."""

_LEAST_SHARE = 1e-6
"""Of the budget, that a width may save at least to be counted."""


class TwoWidthWeight(LearnedWeight):
    """A LearnedWeight that knows the number type of the next width down, `below`; its own until it is told."""

    def __init__(self, step: Tensor, grid: NumberType, block: int | None = None) -> None:
        super().__init__(step, grid, block)
        self.below = grid


Quantizer = TypeVar("Quantizer", bound=TwoWidthWeight)


class Chance(Finder, Generic[Quantizer]):
    """Draws anew in every step whether a group has its present width or the next one down, and learns the odds.

    1. The odds follow the natural gradient, which is that by the probability of the present width itself: of the task's
       loss, of what else `_held` says for the width, and of the pressure times the share of the budget that it costs
       more than the next one.
    2. A group whose probability is below `least` falls to the next width, and begins there with the log-odds 3.

    Ours, for what SDQ and DropBits have in common.
    """

    def __init__(self, rungs: Rungs, settings: ChanceSettings, seed: int) -> None:
        """`seed` is that of the draws."""
        self.rungs = rungs
        self._settings = settings
        self._seed = seed
        self._odds = {name: torch.tensor(_SURE, requires_grad=True) for name in rungs.open}
        fall = self._logit(_SURE) - math.log(settings.least / (1 - settings.least))
        most = max(rungs.saved(name) for name in rungs.open) / self._limit
        # the largest group falls within one interval
        first = fall / (settings.probability_rate * settings.interval * max(most, _LEAST_SHARE))
        self.pressure = Pressure(first, rungs.excess, settings.growth)

    @abstractmethod
    def _drawn(self, odds: Tensor, noise: Tensor, done: float) -> Tensor:
        """Return how much of the present width there is, `[]` in 0..1, with a gradient by the log-odds. `noise` is of
        the standard logistic distribution; `done` is the share of the search that is over.
        """

    @abstractmethod
    def _draw(self, quantizer: Quantizer, share: Tensor | None) -> None:
        """Give a quantiser what was drawn, or nothing behind the search."""

    @abstractmethod
    def _land(self, name: str) -> None:
        """Set the steps of a group that just fell, for the width that it has now and for the next one down."""

    def _logit(self, odds: float) -> float:
        """Return the logit of the probability that there is anything of the present width."""
        return odds

    def _held(self, name: str) -> float:  # noqa: ARG002 - not every way of choosing has something to say here
        """Return the natural gradient, besides the loss, that keeps a group at its width."""
        return 0.0

    @abstractmethod
    def _missed(self, name: str) -> float:
        """Return how much worse a group's weights are at the next width down."""

    def begin(self, step: int, done: float) -> None:
        """Draw the widths."""
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**63)
        for name, odds in self._odds.items():
            uniform = torch.rand((), generator=generator).clamp(1e-6, 1 - 1e-6)
            odds.grad = None
            if name not in self.rungs.open:
                continue
            share = self._drawn(odds, torch.log(uniform) - torch.log1p(-uniform), done)
            for _, quantizer in self._quantizers(name):
                self._draw(quantizer, share.to(quantizer.step.device))

    def after(self, rate: float) -> None:  # noqa: ARG002 - log-odds have a rate of their own
        """Move the log-odds."""
        own = self._settings
        for name in self.rungs.open:
            odds = self._odds[name]
            kept = self._probability(name)
            by_task = float(odds.grad) / (kept * (1 - kept)) if odds.grad is not None else 0.0
            pull = self.pressure.weight * self.rungs.saved(name) / self._limit
            total = max(-_MOST, min(_MOST, by_task)) + pull - self._held(name)
            with torch.no_grad():
                odds.sub_(own.probability_rate * total).clamp_(max=_SURE)

    def adjust(self, done: float) -> None:
        """Let groups fall that are sure to, then steer by the expected cost."""
        for name in self.rungs.open:
            if not self.rungs.met and self._probability(name) < self._settings.least:
                self._fall(name)
        self.pressure.steer(done, self._expected())

    def force(self) -> None:
        """Let the group fall that misses least for what that saves."""
        rungs = self.rungs
        self._fall(min(rungs.open, key=lambda name: self._missed(name) / max(rungs.saved(name), 1e-30)))

    def settle(self) -> None:
        """Draw no more: every group has its present width."""
        for name in self._odds:
            for _, quantizer in self._quantizers(name):
                self._draw(quantizer, None)

    def to_json(self) -> dict[str, float]:
        """The pressure, where the cost began, and the log-odds."""
        found = {"pressure": self.pressure.weight, "start": self.pressure.start}
        return found | {f"odds/{name}": float(odds.detach()) for name, odds in self._odds.items()}

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Take them back."""
        self.pressure = Pressure(float(numbers["pressure"]), float(numbers["start"]), self._settings.growth)
        for name, odds in self._odds.items():
            odds.data.fill_(float(numbers[f"odds/{name}"]))
            self._restore_rung(name)

    def _restore_rung(self, name: str) -> None:
        """Tell the quantisers of a group which width is below its own; steps stay."""
        if self.rungs.numbers[name]:
            for _, quantizer in self._quantizers(name):
                quantizer.below = self.rungs.below(name)

    @property
    def _limit(self) -> float:
        return next(ceiling.limit for ceiling in self.rungs.ceilings if ceiling.model is self.rungs.binding)

    def _quantizers(self, name: str) -> list[tuple[Tensor, Quantizer]]:
        found: list[tuple[Tensor, Quantizer]] = []
        for weight, quantizer in self.rungs.quantizers(name):
            assert isinstance(quantizer, self.QUANTIZER)
            found.append((weight, quantizer))  # type: ignore[arg-type]
        return found

    def _probability(self, name: str) -> float:
        return float(torch.sigmoid(torch.tensor(self._logit(float(self._odds[name].detach())))))

    def _fall(self, name: str) -> None:
        self.rungs.lower(name)
        with torch.no_grad():
            self._odds[name].fill_(_SURE)
        for _, quantizer in self._quantizers(name):
            self._draw(quantizer, None)
        self._land(name)

    def _expected(self) -> float:
        rungs = self.rungs
        saved = sum(rungs.saved(name) * (1 - self._probability(name)) for name in rungs.open)
        return rungs.excess - saved / self._limit
