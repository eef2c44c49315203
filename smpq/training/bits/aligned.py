"""Activations whose distribution is compared with that before rounding, by a kernel whose bandwidth is learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from calib.formats.quantizers import ActivationQuantizer
from smpq.training.lsq import LearnedActivation

_GOLDEN = (math.sqrt(5) - 1) / 2
_FARTHEST = math.log(1000.0)
"""How far the logarithm of a bandwidth may go from its start."""


class AlignedActivation(LearnedActivation):
    """A LearnedActivation that keeps what it rounded, while gradients are recorded in training mode.

    The bandwidth of its kernel is learned too. It begins at the step, in units of the activation.
    """

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__(quantizer)
        self._first = math.log(quantizer.scale)
        self.log_bandwidth = nn.Parameter(torch.tensor(self._first, dtype=torch.float32))
        self._kept: list[Tensor] = []

    def forward(self, tensor: Tensor) -> Tensor:
        """Round to the grid."""
        if self.training and torch.is_grad_enabled():
            self._kept.append(tensor.detach())
        return super().forward(tensor)

    def taken(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return `count` values `[count]` before and after rounding, of each tensor since the last call.

        They are rounded once more, for a gradient of the step alone, scaled by their number and not by the tensor's.
        """
        kept, self._kept = [_some(tensor, count) for tensor in self._kept], []
        return [(before, super(AlignedActivation, self).forward(before)) for before in kept]

    def project(self) -> None:
        """Keep the step positive, and the bandwidth finite."""
        super().project()
        with torch.no_grad():
            self.log_bandwidth.clamp_(self._first - _FARTHEST, self._first + _FARTHEST)


def discrepancy(one: Tensor, other: Tensor, log_bandwidth: Tensor) -> Tensor:
    """Return `[...]`, the squared maximum mean discrepancies of two samples of numbers, `[..., B]` each with bandwidths
    `[...]`, in the form of KAQ (2505.12736).

    1/B^2 sum K(x, x') + 1/B^2 sum K(y, y') - 2/B^2 sum K(x, y), K(a, b) = exp(-(a - b)^2 / (2 bandwidth^2)): 0 for
    equal samples, at most 2.
    """
    pairs = ((one, one), (other, other), (one, other))
    kernels = [_exponents(a, b, log_bandwidth).exp().mean((-2, -1)) for a, b in pairs]
    return kernels[0] + kernels[1] - 2 * kernels[2]


def misfit(values: Tensor, centres: Tensor, log_bandwidth: Tensor) -> Tensor:
    """Return `[...]`, the mean negative log likelihood of numbers `[..., B]` under the kernel density of others.

    The centre of the same place is left out: it is what the number was rounded to.
    """
    exponents = _exponents(values, centres, log_bandwidth)
    count = values.shape[-1]
    own = torch.eye(count, dtype=torch.bool, device=values.device)
    density = torch.logsumexp(exponents.masked_fill(own, -math.inf), -1) - math.log(count - 1)
    return log_bandwidth + math.log(2 * math.pi) / 2 - density.mean(-1)


def _exponents(one: Tensor, other: Tensor, log_bandwidth: Tensor) -> Tensor:
    apart = one[..., :, None] - other[..., None, :]
    return -(apart / log_bandwidth.exp()[..., None, None]).square() / 2


def _some(tensor: Tensor, count: int) -> Tensor:
    """Return `count` values of a tensor as float32 `[count]`, spread over it by multiples of the golden section."""
    places = (torch.arange(count, dtype=torch.float64) * _GOLDEN % 1 * tensor.numel()).long()
    return tensor.flatten()[places.to(tensor.device)].float()
