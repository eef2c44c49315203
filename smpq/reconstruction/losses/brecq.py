"""Gradients as weights of the squared error: a damped diagonal of the Fisher information."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.reconstruction.losses.base import Sensitivity, reconstruction_loss

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@reconstruction_loss("brecq", paper="BRECQ, Li et al. ICLR 2021 (arXiv 2102.05426), eq. 10", times=1)
class SquaredGradients:
    """Squared error of each element times a weight, `(|gradient| + 1)^2`, of each sample.

    The gradients are scaled so that their mean square is one, and the weights so that their mean is: the cost counts as
    the plain squared error does. The constant is that of the authors' code, which the paper does not have. Without it
    elements of small gradient, most of all in samples that the network is sure of, are free to go anywhere.
    """

    def __init__(self, channels: int = 1) -> None:
        self._channels = channels
        self._weights: Tensor | None = None

    def learn(self, seen: Iterable[Sensitivity]) -> None:
        """Keep the weights, in memory."""
        import torch

        order = torch.cat([each.index for each in seen]).argsort()
        sizes = torch.cat([each.gradient for each in seen]).abs()[order]
        root = sizes.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        weights = (sizes / root + 1).square()
        self._weights = weights / weights.mean()

    def __call__(self, error: Tensor, index: Tensor) -> Tensor:
        """Return the cost."""
        assert self._weights is not None
        weighted = error.square() * self._weights[index]
        return weighted.sum(self._channels).mean() if error.dim() > 1 else weighted.mean()
