"""How a quantised network is reconstructed; importing it does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from calib.declared import SEEDS, Declared, Group, Interval, OneOf, check_declared
from smpq.choices import VALUES
from smpq.reconstruction.losses.base import LOSSES

STARTS = ("calibrated", "nearest")
_WAY, _LARGEST_RATE = 30.0, 0.1
_ABOVE_ZERO, _NOT_NEGATIVE = Interval(0, above=True), Interval(0)


@dataclass(frozen=True)
class ReconstructionSettings:
    """How to reconstruct a network block by block, without labels.

    `loss` is what the difference between a block and its float original costs (`smpq.reconstruction.losses`).
    `iterations` are steps of Adam for each block, on `batch` samples each, of `samples` of the calibration data.
    `start` says where integers begin: "calibrated", at those of the run's rounding, or "nearest", at the float weight
    on the same grid. `rounding_rate` is the learning rate of AdaRound's variables: they have as far to go in few
    iterations as in many, so that it is 30 / iterations by default. `step_rate` is that of the logarithm
    of the steps of weights, `activation_rate` of the steps of activations as a share of them, `bias_rate` of biases as
    a share of what their channels vary by; all three fall to 0 in a half cosine.
    `drop` is the share of a block's input that comes from the float network at first, element by element (QDrop); it
    falls evenly to 0, so that a block ends on what it will read. That is ours. Activations below 8 bits inside of a
    block are left in float as often all the time.
    `channel_scales` first gives each channel behind a LayerNorm a scale, and a shift, where linear layers with
    activations below 8 bits read it (`smpq.reconstruction.channel_scales`). `regulariser` is the weight of AdaRound's
    pull to whole integers, from the first fifth of the iterations on. `value` judges start and end on the calibration
    data.
    """

    loss: Annotated[str, Declared("what a block's error costs", OneOf(tuple(LOSSES)), "--loss", Group.WHAT)] = "mse"
    iterations: Annotated[int, Declared("steps for each block", Interval(1, 10**6), "--iterations", Group.LENGTH)] = (
        1000
    )
    samples: Annotated[
        int, Declared("calibration samples that blocks are reconstructed on", Interval(1), "--samples", Group.LENGTH)
    ] = 1024
    batch: Annotated[int, Declared("samples of one step", Interval(1))] = 32
    start: Annotated[str, Declared("where integers begin", OneOf(STARTS), "--start")] = "calibrated"
    rounding_rate: Annotated[
        float | None,
        Declared("learning rate of roundings", _ABOVE_ZERO, "--rounding-rate", unset="30 / iterations, 0.1 at most"),
    ] = None
    step_rate: Annotated[float, Declared("learning rate of the logarithm of step sizes", _NOT_NEGATIVE)] = 0.003
    activation_rate: Annotated[float, Declared("learning rate of the steps of activations", _NOT_NEGATIVE)] = 0.003
    bias_rate: Annotated[float, Declared("learning rate of biases", _NOT_NEGATIVE)] = 0.003
    drop: Annotated[
        float, Declared("share of the input that is float at first, and of activations", Interval(0, 1))
    ] = 0.5
    channel_scales: Annotated[
        bool,
        Declared("scale the channels behind LayerNorms for activations below 8 bits", option="--channel-scales"),
    ] = False
    regulariser: Annotated[float, Declared("weight of the pull to whole integers", _NOT_NEGATIVE)] = 0.05
    value: Annotated[str, Declared("what start and end are judged by", OneOf(VALUES))] = "kl"
    seed: Annotated[int, Declared("seed of the samples of each step", SEEDS)] = 0

    def __post_init__(self) -> None:
        check_declared(self)

    @property
    def rate(self) -> float:
        """The learning rate of roundings."""
        return self.rounding_rate or min(_WAY / self.iterations, _LARGEST_RATE)
