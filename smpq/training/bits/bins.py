"""Entropy-aware bin regularisation: weights are drawn to the middles of their bins."""

from __future__ import annotations

import torch
from torch import Tensor

from smpq.training.lsq import LearnedWeight


def bin_loss(weight: Tensor, quantizer: LearnedWeight) -> Tensor:
    """Return `[]`, the sum over the bins of a weight of (mean - middle)^2 + variance, in units of the step.

    Huang et al., SDQ (arXiv 2206.04459), eq. 10, whose sum is the mean squared distance of a bin's weights from its
    middle. Weights outside of the grid belong to no bin. The steps get no gradient: they are learned from the loss.
    """
    scaled = weight / quantizer.spread(weight).detach()
    low, high = quantizer.limits
    with torch.no_grad():
        middles = quantizer.grid.round_(scaled.clone(), low, high)
        half = quantizer.grid.spacing / 2
        inside = (scaled - middles).abs() <= half
        index = (middles - low).long()[inside]
        counts = torch.zeros(int(high - low) + 1, device=weight.device).index_add_(
            0, index, torch.ones_like(index, dtype=torch.float32)
        )
    apart = (scaled - middles).square()[inside]
    return (apart / counts[index]).sum()
