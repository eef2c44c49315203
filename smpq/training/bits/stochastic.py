"""A weight that is rounded to one of two neighbouring widths, by chance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calib.formats.number_type import NumberType
from smpq.training.bits.chance import TwoWidthWeight


class StochasticWeight(TwoWidthWeight):
    """A LearnedWeight with a second grid and step below its own. Huang et al., SDQ (arXiv 2206.04459), section 3.

    While `chosen` is set, a tensor `[]` that is 1 for the present width and 0 for the one below, the weight is that of
    the chosen width; `chosen` gets the gradient of the loss by the difference of both. Without it this is a
    LearnedWeight.
    """

    def __init__(self, step: Tensor, grid: NumberType, block: int | None = None) -> None:
        super().__init__(step, grid, block)
        self.below_step = nn.Parameter(step.detach().clone())
        self.chosen: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the integers of the chosen width stand for."""
        high = super().forward(weight)
        if self.chosen is None:
            return high
        return self.chosen * high + (1 - self.chosen) * self.rounded(weight, self.below_step, self.below)

    def errors(self, weight: Tensor) -> tuple[float, float]:
        """Return the relative squared error of the present width, and that of the one below."""
        with torch.no_grad():
            whole = float(weight.square().sum()) or 1.0
            both = (self.rounded(weight, self.step, self.grid), self.rounded(weight, self.below_step, self.below))
            high, low = (float((weight - rounded).square().sum()) / whole for rounded in both)
        return high, low

    def project(self) -> None:
        """Keep both steps positive."""
        super().project()
        with torch.no_grad():
            self.below_step.copy_(torch.maximum(self.below_step, self._smallest))
