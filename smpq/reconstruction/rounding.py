"""AdaRound: the integers of a weight as variables between the integer below and the one above."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight

_STRETCH, _SHIFT = 1.2, -0.1
"""The sigmoid is stretched a little beyond 0 and 1, so that both can be reached (Louizos et al., arXiv 1712.01312)."""
_MARGIN = 0.45
"""How far from its integer, in steps, a calibrated weight may begin."""
_EDGE = 0.01
_FEWEST_BITS = 2
"""A weight of one bit has no integer between its two."""


def learns_rounding(kind: NumberType) -> bool:
    """Whether weights of a type have integers that are learned: those of two bits or more."""
    return kind.zero_points or (kind.is_integer and kind.widest_bits >= _FEWEST_BITS)


class SoftWeight(nn.Module):
    """A weight `[out, in, ...]` whose integers are floor(w / s) + h(v), h between 0 and 1, with steps s that are
    learned.

    Nagel et al., arXiv 2004.10568, eq. 22 to 24. The step is exp(u) times that of the start, one u for each step; where
    all channels share one, it stays. Zero points stay too: they are added to w / s. Values of one bit are two apart, so
    that their floor and h are counted in twos.
    """

    def __init__(self, weight: Tensor, start: QuantizedWeight, begin: str) -> None:
        """`begin` "calibrated" takes the integers of `start`,
        and what of the float weight is within 0.45 steps of them; "nearest" the float weight on the steps of `start`.
        """
        super().__init__()
        self._start = start
        self._steps = start.scale.to(weight.device)
        self._zero = None if start.zero_point is None else self._spread(start.zero_point.to(weight.device))
        self.low, self.high, self._apart = _limits(start, weight.device)
        scaled = weight / self._spread(self._steps)
        if self._zero is not None:
            scaled = (scaled + self._zero) / self._apart
        if begin == "calibrated":
            integers = start.values.to(weight.device).float() / self._apart
            scaled = torch.clamp(scaled, integers - _MARGIN, integers + _MARGIN)
        scaled = scaled.clamp(self.low, self.high)
        self.floor = torch.minimum(scaled.floor(), self.high - 1)
        share = (scaled - self.floor).clamp(_EDGE, 1 - _EDGE)
        self.variables = nn.Parameter(-torch.log(_STRETCH / (share - _SHIFT) - 1))
        self.stretch = nn.Parameter(torch.zeros_like(self._steps))
        self.stretch.requires_grad_(not start.type.one_scale)

    def soft(self) -> Tensor:
        """Return h, between 0 and 1."""
        return (torch.sigmoid(self.variables) * _STRETCH + _SHIFT).clamp(0, 1)

    def forward(self) -> Tensor:
        """Return the weight, with integers that are not whole yet."""
        numbers = self.floor + self.soft()
        if self._zero is not None:
            numbers = numbers * self._apart - self._zero
        return numbers * self._spread(self.scale())

    def pull(self, beta: float) -> Tensor:
        """Return how far the variables are from 0 and 1: the sum of 1 - |2 h - 1| ^ beta (eq. 24)."""
        return (1 - (2 * self.soft() - 1).abs().pow(beta)).sum()

    def scale(self) -> Tensor:
        """Return the steps."""
        return self._steps * torch.exp(self.stretch)

    def hard(self) -> QuantizedWeight:
        """Return the whole integers, and the steps."""
        with torch.no_grad():
            integers = (self.floor + (self.soft() >= 0.5)) * self._apart
            stored = self._start.type.stored(integers).contiguous()
            scale = self._start.type.held(self.scale().float()).contiguous()
            zero = self._start.zero_point
            return replace(
                self._start, values=stored.cpu(), scale=scale.cpu(), zero_point=None if zero is None else zero.cpu()
            )

    def whole(self) -> Tensor:
        """Return the weight with whole integers."""
        return self.hard().dequantize().to(self.floor.device)

    def _spread(self, scale: Tensor) -> Tensor:
        block = self._start.block
        if block is not None:
            return scale.repeat_interleave(block, dim=1)
        return scale.reshape(-1, *[1] * (self._start.values.dim() - 1))


def _limits(start: QuantizedWeight, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return smallest and largest value, and how far values are apart, which both are counted in; `[]`, or `[in]` where
    blocks of inputs have types of their own.
    """
    if not start.type.block_widths or start.block is None:
        found = [(*start.type.limits, start.type.spacing)]
    else:
        types = [start.type.of_block(number) for number in range(start.scale.shape[1])]
        found = [(*own.limits, own.spacing) for own in types]
    low, high, apart = (torch.tensor(each, dtype=torch.float32, device=device) for each in zip(*found, strict=True))
    low, high = low / apart, high / apart
    if len(found) == 1:
        return low[0], high[0], apart[0]
    repeated = [each.repeat_interleave(start.block or 1) for each in (low, high, apart)]
    return repeated[0], repeated[1], repeated[2]
