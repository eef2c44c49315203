"""Choose the range that an activation quantiser covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from calib.choices import OBSERVERS
from calib.errors import UserError
from calib.formats.number_type import NumberType
from calib.formats.quantizers import Scheme, quantizer_from_range
from calib.strides import stride_over

_SAMPLES_PER_BATCH = 16_384
_MOST_SAMPLES = 2**18
"""Of one tensor, over all batches: 1 MB."""
_PERCENTILE = 99.99
_MSE_STEPS = 60
_ENTROPY_BINS = 2048
_SMALLEST_SHARE, _SHARE_STEPS = 0.01, 100


@dataclass
class Observed:
    """What is remembered of one tensor over the calibration data: exact extremes and an evenly spaced sample of the
    values.

    Of a sample of more than 262,144 values a random half is dropped, and of what comes later the same share, so that
    all batches count alike.
    """

    low: float = 0.0
    high: float = 0.0
    parts: list[Tensor] = field(default_factory=list)
    _share: float = 1.0
    _random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def add(self, tensor: Tensor) -> None:
        """Take in one batch's tensor, any shape."""
        flat = tensor.detach().float().reshape(-1)
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        # odd in any case: what is flat here may have had channels before
        wanted = max(flat.numel() // _SAMPLES_PER_BATCH, 1) | 1
        stride = stride_over(wanted, math.prod(tensor.shape[1:]))
        taken = flat[::stride].cpu()
        self.parts.append(taken.clone() if self._share == 1.0 else self._thinned(taken, self._share))
        while sum(map(len, self.parts)) > _MOST_SAMPLES:
            self._share /= 2
            self.parts = [self._thinned(torch.cat(self.parts), 0.5)]

    def _thinned(self, values: Tensor, share: float) -> Tensor:
        """Return a random share of some values."""
        return values[torch.rand(len(values), generator=self._random) < share]

    def sample(self) -> Tensor:
        """Return `[n]` sampled values, the extremes among them."""
        return torch.cat([*self.parts, torch.tensor([self.low, self.high])])


Observer: TypeAlias = Callable[[Observed, NumberType, Scheme], tuple[float, float]]
"""Takes what was seen, the number type and the scheme, and returns the real range `(low, high)`."""


def observer(name: str) -> Callable[[Observer], Observer]:
    """Register a range rule under the name that `--observer` takes: a function of (Observed, number type,
    scheme) -> (low, high). A built-in one has a row in `calib.choices` too.
    """

    def register(function: Observer) -> Observer:
        OBSERVERS[name] = function
        return function

    return register


def observer_from_name(name: str) -> Observer:
    """Return a registered observer; UserError lists the names."""
    if name not in OBSERVERS:
        raise UserError(f"unknown observer {name!r}: choose one of {', '.join(OBSERVERS)}")
    return OBSERVERS[name]


@observer("minmax")
def minmax(seen: Observed, grid: NumberType, scheme: Scheme) -> tuple[float, float]:
    """Cover everything that was seen."""
    del grid, scheme
    return seen.low, seen.high


@observer("percentile")
def percentile(seen: Observed, grid: NumberType, scheme: Scheme) -> tuple[float, float]:
    """Cover all but 0.01 % of the values at either end."""
    del grid, scheme
    values = seen.sample().numpy()
    low, high = np.percentile(values, [100 - _PERCENTILE, _PERCENTILE])
    return min(float(low), 0.0), max(float(high), 0.0)


@observer("mse")
def mse(seen: Observed, grid: NumberType, scheme: Scheme) -> tuple[float, float]:
    """Shrink the full range until the mean squared error of the rounded values is smallest."""
    return _least_error(seen, grid, scheme, torch.linspace(0.15, 1.0, _MSE_STEPS).tolist())


def _least_error(seen: Observed, grid: NumberType, scheme: Scheme, shrinks: Sequence[float]) -> tuple[float, float]:
    values = seen.sample()
    # the squares of tiny values vanish in float32: count in a power of two near the largest
    unit = 2.0 ** -math.frexp(max(-seen.low, seen.high))[1]
    best, best_error = (seen.low, seen.high), float("inf")
    for shrink in shrinks:
        low, high = seen.low * shrink, seen.high * shrink
        error = float((quantizer_from_range(low, high, grid, scheme)(values) - values).mul_(unit).square_().mean())
        if error < best_error:
            best, best_error = (low, high), error
    return best


def shares(seen: Observed, grid: NumberType, scheme: Scheme) -> tuple[float, float]:
    """Return the range of what softmax gives, whose mean squared error is smallest.

    Most values are near zero and a few near one, so that the best range may be a small part of what was seen: it is
    sought in equal ratios.
    """
    return _least_error(seen, grid, scheme, torch.logspace(math.log10(_SMALLEST_SHARE), 0, _SHARE_STEPS).tolist())


@observer("entropy")
def entropy(seen: Observed, grid: NumberType, scheme: Scheme) -> tuple[float, float]:
    """Clip where the histogram loses least information, measured by the KL divergence to its quantised version.

    As in Migacz, "8-bit inference with TensorRT", GTC 2017, on the magnitudes. UserError for types whose values are not
    evenly spaced: merging bins evenly is not what they do.
    """
    del scheme
    if not grid.is_integer:
        raise UserError(f"the observer entropy is for integers, not for {grid.name}: use mse, minmax or percentile")
    magnitudes = seen.sample().abs().numpy()
    top = float(magnitudes.max())
    if top == 0.0:
        return seen.low, seen.high
    counts, _ = np.histogram(magnitudes[magnitudes > 0], bins=_ENTROPY_BINS, range=(0.0, top))
    levels = 2 ** (int(grid.bits) - 1)
    best, best_divergence = top, float("inf")
    for bins in range(max(levels, 128), _ENTROPY_BINS + 1, 16):
        clipped = counts[:bins].astype(np.float64)
        clipped[-1] += counts[bins:].sum()
        divergence = _divergence(clipped, counts[:bins].astype(np.float64), levels)
        if divergence < best_divergence:
            best, best_divergence = top * bins / _ENTROPY_BINS, divergence
    return max(seen.low, -best), min(seen.high, best)


def _divergence(reference: np.ndarray, inside: np.ndarray, levels: int) -> float:
    """KL divergence of the clipped histogram to the same histogram after it was merged into `levels` bins and spread
    again.
    """
    group = np.arange(len(inside)) * levels // len(inside)
    occupied = inside > 0
    totals = np.bincount(group, weights=inside, minlength=levels)
    members = np.bincount(group, weights=occupied, minlength=levels)
    spread = np.where(occupied, totals[group] / np.maximum(members[group], 1), 0.0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-12)
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / np.maximum(q[present], 1e-12))))
