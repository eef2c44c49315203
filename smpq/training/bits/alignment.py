"""Training that aligns the distributions of activations before and after rounding: KAQ's, at widths that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from smpq.problem.policy import Space
from smpq.solve.allocate import Ceiling
from smpq.training.bits.aligned import AlignedActivation, discrepancy, misfit
from smpq.training.bits.finder import Finder
from smpq.training.bits.ladder import Ladders, uniform_of
from smpq.training.bits.rungs import Rungs
from smpq.training.bits.settings import KaqSettings
from smpq.training.lsq import LearnedActivation


class Alignment(Finder):
    """Finds no bits: all groups have the widest uniform format within the budget, from the first step on.

    1. To the loss of each step is added the discrepancy of every activation whose step is learned, times the weight of
       the settings.
    2. It moves the steps, and not what the layers before compute. Measured on `examples/mimo.py` at 4 bits, 6 epochs:
       with gradients that pass on through rounding the training ended 0.43 dB from float, plain learned steps 0.07 dB.
    3. Bandwidths are fitted to the density of the activation by its likelihood, and the discrepancy gives them no
       gradient: it would fall for ever as they grow.
    """

    ACTIVATION: ClassVar[type[LearnedActivation]] = AlignedActivation
    LEARNS: ClassVar[bool | None] = True
    SEARCHES: ClassVar[bool] = False

    def __init__(self, rungs: Rungs, settings: KaqSettings) -> None:
        self.rungs = rungs
        self._settings = settings

    @classmethod
    def ladders(cls, space: Space, ceilings: Sequence[Ceiling]) -> Ladders:
        """Return one format for each group."""
        return uniform_of(space, ceilings)

    def adjust(self, done: float) -> None:
        """Do nothing: there is no search."""

    def force(self) -> None:
        """Do nothing: the widths are within the budget."""

    def refine(self) -> Tensor | None:
        """Return the weighted discrepancy of all activations, with the gradients of their bandwidths."""
        weight = self._settings.alignment
        found = [
            (before, after, quantizer.log_bandwidth)
            for quantizer in self.rungs.graph.quantizers()
            if isinstance(quantizer, AlignedActivation)
            for before, after in quantizer.taken(self._settings.values)
        ]
        if not found or not weight:
            return None
        before, after, bandwidths = (torch.stack(each) for each in zip(*found, strict=True))
        fits = misfit(before, after.detach(), bandwidths).sum()
        # a gradient of the bandwidths, and nothing that the loss would show
        return weight * discrepancy(before, after, bandwidths.detach()).sum() + fits - fits.detach()

    def to_json(self) -> dict[str, float]:
        """Nothing: what is learned is part of the graph."""
        return {}

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Do nothing."""
