"""AdaRound: the integers of a weight as variables between the integer below and the one above."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calib.formats.quantizers import QuantizedWeight

_STRETCH, _SHIFT = 1.2, -0.1
"""The sigmoid is stretched a little beyond 0 and 1, so that both can be reached (Louizos et al., arXiv 1712.01312)."""
_MARGIN = 0.45
"""How far from its integer, in steps, a calibrated weight may begin."""
_EDGE = 0.01


class SoftWeight(nn.Module):
    """A weight `[out, in, ...]` whose integers are floor(w / s) + h(v), h between 0 and 1, with steps s that are
    learned.

    Nagel et al., arXiv 2004.10568, eq. 22 to 24. The step is exp(u) times that of the start, one u for each step; where
    all channels share one, it stays.
    """

    def __init__(self, weight: Tensor, start: QuantizedWeight, begin: str) -> None:
        """`begin` "calibrated" takes the integers of `start`, and what of the float weight is within 0.45 steps of them;
        "nearest" the float weight on the steps of `start`.
        """
        super().__init__()
        self._start = start
        self._steps = start.scale.to(weight.device)
        self.low, self.high = start.type.limits
        scaled = weight / self._spread(self._steps)
        if begin == "calibrated":
            integers = start.values.to(weight.device).float()
            scaled = torch.clamp(scaled, integers - _MARGIN, integers + _MARGIN)
        scaled = scaled.clamp(self.low, self.high)
        self.floor = scaled.floor().clamp(max=self.high - 1)
        share = (scaled - self.floor).clamp(_EDGE, 1 - _EDGE)
        self.variables = nn.Parameter(-torch.log(_STRETCH / (share - _SHIFT) - 1))
        self.stretch = nn.Parameter(torch.zeros_like(self._steps))
        self.stretch.requires_grad_(not start.type.one_scale)

    def soft(self) -> Tensor:
        """Return h, between 0 and 1."""
        return (torch.sigmoid(self.variables) * _STRETCH + _SHIFT).clamp(0, 1)

    def forward(self) -> Tensor:
        """Return the weight, with integers that are not whole yet."""
        return (self.floor + self.soft()) * self._spread(self.scale())

    def pull(self, beta: float) -> Tensor:
        """Return how far the variables are from 0 and 1: the sum of 1 - |2 h - 1| ^ beta (eq. 24)."""
        return (1 - (2 * self.soft() - 1).abs().pow(beta)).sum()

    def scale(self) -> Tensor:
        """Return the steps."""
        return self._steps * torch.exp(self.stretch)

    def hard(self) -> QuantizedWeight:
        """Return the whole integers, and the steps."""
        with torch.no_grad():
            integers = self.floor + (self.soft() >= 0.5)
            stored = self._start.type.stored(integers).contiguous()
            return QuantizedWeight(
                self._start.type, stored.cpu(), self.scale().float().contiguous().cpu(), self._start.block
            )

    def _spread(self, scale: Tensor) -> Tensor:
        block = self._start.block
        if block is not None:
            return scale.repeat_interleave(block, dim=1)
        return scale.reshape(-1, *[1] * (self._start.values.dim() - 1))
