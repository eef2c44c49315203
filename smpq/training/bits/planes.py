"""Bit planes that a group lasso empties: BSQ's search, without a float for every bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from smpq.training.bits.finder import Finder
from smpq.training.bits.pressure import Pressure
from smpq.training.bits.rungs import Rungs, ratio
from smpq.training.bits.settings import BsqSettings
from smpq.training.lsq import LearnedWeight

_SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the range, when a layer comes to a new width: 0.5 strips the highest bit instead of the lowest."""


class PlaneLasso(Finder):
    """Empties the lowest bit planes that are left of each group of layers, until they can be stripped.

    1. The lowest planes of a weight are what is left of it when it is rounded to the next width down. Its length over a
       group of layers, every channel in units of its range, is the norm of the plane group: no plane is stored.
    2. After each step of the optimiser that rest is shortened by rate * alpha * share, the proximal step of a group
       lasso; share is the group's part of the cost that is over its limit most.
    3. At an adjustment a group whose planes are all but empty loses them. The step of every channel is then fitted to
       the width below the new one: half of the range means that the highest bit goes and not the lowest.
    """

    def __init__(self, rungs: Rungs, settings: BsqSettings, rate: float) -> None:
        """`rate` is the peak learning rate of weights."""
        self.rungs = rungs
        self._settings = settings
        for name in rungs.open:
            self._fit(name)
        norms = {name: self._norm(name) for name in rungs.open}
        # the first planes are empty after one interval
        first = min((norm / rungs.share(name) for name, norm in norms.items() if norm > 0), default=1.0)
        self.pressure = Pressure(first / (rate * settings.interval), rungs.excess, settings.growth)
        self._full: dict[str, float] = norms

    def after(self, rate: float) -> None:
        """Shorten the rests."""
        for name in self.rungs.open:
            rests = self._rests(name)
            norm = _length(rests)
            least = rate * self.pressure.weight * self.rungs.share(name)
            kept = max(0.0, 1 - least / norm) if norm > 0 else 1.0
            with torch.no_grad():
                for weight, rest, _ in rests:
                    weight.sub_(rest, alpha=1 - kept)

    def adjust(self, done: float) -> None:
        """Strip what is empty, then steer by the cost; half-empty planes count in part."""
        for name in self.rungs.open:
            if not self.rungs.met and self._set_bits(name) <= self._settings.empty:
                self.rungs.lower(name)
                if self.rungs.numbers[name]:
                    self._fit(name)
                    self._full[name] = self._norm(name)
        self.pressure.steer(done, self._expected())

    def force(self) -> None:
        """Strip the planes of the group with the fewest set bits for what that saves."""
        rungs = self.rungs
        rungs.lower(min(rungs.open, key=lambda name: self._set_bits(name) / max(rungs.saved(name), 1e-30)))

    def to_json(self) -> dict[str, float]:
        """Alpha, where the cost began, and the norms of full planes."""
        found = {"alpha": self.pressure.weight, "start": self.pressure.start}
        return found | {f"full/{name}": norm for name, norm in self._full.items()}

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Take them back."""
        self.pressure = Pressure(float(numbers["alpha"]), float(numbers["start"]), self._settings.growth)
        self._full = {
            name.removeprefix("full/"): float(value) for name, value in numbers.items() if name.startswith("full/")
        }

    def _expected(self) -> float:
        """Return the cost over its limit, of which planes that are partly emptied take a part."""
        rungs = self.rungs
        saved = sum(
            rungs.saved(name) * max(0.0, 1 - self._norm(name) / max(self._full[name], 1e-30)) for name in rungs.open
        )
        limit = next(ceiling.limit for ceiling in rungs.ceilings if ceiling.model is rungs.binding)
        return rungs.excess - saved / limit

    def _norm(self, name: str) -> float:
        return _length(self._rests(name))

    def _rests(self, name: str) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return of each weight of a group itself, what rounding to the next width down leaves of it, and its range
        `[out, 1, ...]`.
        """
        below = self.rungs.below(name)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for weight, quantizer in self.rungs.quantizers(name):
                step = quantizer.spread(weight)
                low, high = quantizer.limits
                inside = torch.minimum(torch.maximum(weight, low * step), high * step)
                coarse = step * ratio(quantizer.grid, below)
                rest = inside - below.round_(inside / coarse, *below.limits) * coarse
                found.append((weight, rest, -low * step))
        return found

    def _set_bits(self, name: str) -> float:
        """Return the share of weights that rounding to the next width down would change."""
        below, changed, count = self.rungs.below(name), 0, 0
        with torch.no_grad():
            for weight, quantizer in self.rungs.quantizers(name):
                scaled, factor = weight / quantizer.spread(weight), ratio(quantizer.grid, below)
                fine = quantizer.grid.round_(scaled.clone(), *quantizer.limits)
                coarse = below.round_(scaled / factor, *below.limits) * factor
                changed += int((fine != coarse).sum())
                count += weight.numel()
        return changed / count

    def _fit(self, name: str) -> None:
        for weight, quantizer in self.rungs.quantizers(name):
            _fit_step(weight.detach(), quantizer, self.rungs.below(name))


def _fit_step(weight: Tensor, quantizer: LearnedWeight, below: NumberType) -> None:
    """Shrink the step of each channel to where the next width down is nearest to the weight."""
    step = quantizer.spread(weight).detach()
    factor, axes = ratio(quantizer.grid, below), tuple(range(1, weight.dim()))
    errors = []
    for shrink in _SHRINKS:
        coarse = step * (shrink * factor)
        errors.append((weight - below.round_(weight / coarse, *below.limits) * coarse).square().sum(axes))
    best = torch.stack(errors).argmin(0)
    with torch.no_grad():
        quantizer.step.mul_(torch.tensor(_SHRINKS).to(weight.device)[best])


def _length(rests: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    return math.sqrt(sum(float((rest / span).square().sum()) for _, rest, span in rests))
