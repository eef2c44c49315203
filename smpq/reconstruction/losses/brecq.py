"""Squared gradients as weights of the squared error: the diagonal of the Fisher information."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.reconstruction.losses.base import Sensitivity, reconstruction_loss

if TYPE_CHECKING:
    from torch import Tensor


@reconstruction_loss("brecq", paper="BRECQ, Li et al. ICLR 2021 (arXiv 2102.05426), eq. 10", times=1)
class SquaredGradients:
    """Squared error of each element times its squared gradient, of each sample.

    The gradients are scaled so that their mean square is one, so that the cost counts as the plain squared error does.
    """

    def __init__(self) -> None:
        self._weights: Tensor | None = None

    def learn(self, seen: list[Sensitivity]) -> None:
        """Keep the squared gradients."""
        import torch

        order = torch.cat([each.index for each in seen]).argsort()
        squares = torch.cat([each.gradient for each in seen]).square()[order]
        self._weights = squares / squares.mean().clamp(min=torch.finfo(torch.float32).tiny)

    def __call__(self, error: Tensor, index: Tensor) -> Tensor:
        """Return the cost."""
        assert self._weights is not None
        weighted = error.square() * self._weights[index]
        return weighted.sum(1).mean() if error.dim() > 1 else weighted.mean()
