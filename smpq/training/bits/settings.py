"""How a training looks for the bits of its layers; importing it does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from calib.declared import Declared, Interval, check_declared

_SHARE = Interval(0, 1, above=True, below=True)
_ABOVE_ZERO, _NOT_NEGATIVE = Interval(0, above=True), Interval(0)


@dataclass(frozen=True)
class BitSettings:
    """How the bits are found, besides how weights are trained (`smpq.training.settings.FineTuneSettings`).

    The first `search` share of the steps looks for the bits: every `interval` steps, or more often where these steps
    are few, widths are adjusted, and the pressure on the bits is multiplied or divided by `growth`, as the cost is
    behind or ahead of its course.
    """

    search: Annotated[float, Declared("share of the steps that may change widths", _SHARE)] = 0.3
    interval: Annotated[int, Declared("most steps between two adjustments", Interval(1))] = 10
    growth: Annotated[float, Declared("factor by which the pressure changes", Interval(1, 100, above=True))] = 1.3


@dataclass(frozen=True)
class BsqSettings(BitSettings):
    """BSQ. `empty`: a bit plane is stripped once at most this share of its bits is set (BSQ: 0; MSQ: a threshold)."""

    empty: Annotated[float, Declared("share of set bits of a plane that is stripped", Interval(0, 1, below=True))] = (
        0.01
    )

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True)
class KaqSettings(BitSettings):
    """KAQ, which looks for no bits. `alignment` weighs the discrepancy of distributions (the paper's lambda), which is
    that of `values` numbers of each activation.
    """

    alignment: Annotated[float, Declared("weight of the alignment of distributions", _NOT_NEGATIVE)] = 0.05
    values: Annotated[int, Declared("numbers of an activation that are compared", Interval(2, 4096))] = 128

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True)
class ChanceSettings(BitSettings):
    """Widths that are drawn. A group falls to the next width once its probability of the present one is below `least`.

    `probability_rate` is the learning rate of the log-odds.
    """

    least: Annotated[float, Declared("probability below which a width is lost", _SHARE)] = 0.01
    probability_rate: Annotated[float, Declared("learning rate of log-odds", _ABOVE_ZERO)] = 10.0


@dataclass(frozen=True)
class SdqSettings(ChanceSettings):
    """SDQ.

    `error` weighs the quantisation error against the bits. The `temperature` of Gumbel's softmax falls in a straight
    line from the first to the last. `bins` weighs the entropy-aware bin regularisation of phase 2 (the paper's
    lambda_E).
    """

    error: Annotated[float, Declared("weight of the quantisation error", _NOT_NEGATIVE)] = 1.0
    first_temperature: Annotated[float, Declared("temperature of the choice at the start", _ABOVE_ZERO)] = 1.0
    last_temperature: Annotated[float, Declared("temperature of the choice at the end", _ABOVE_ZERO)] = 0.1
    bins: Annotated[float, Declared("weight of the bin regularisation", _NOT_NEGATIVE)] = 0.1

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True)
class CpqSettings(ChanceSettings):
    """CPQ and DropBits. `noise` is that of weights, a share of the distance of two values:
    the smaller, the more weights are drawn to the middles of their bins.
    """

    noise: Annotated[float, Declared("noise of weights, a share of a step", Interval(0.01, 0.5))] = 1 / 3

    def __post_init__(self) -> None:
        check_declared(self)
