"""Quantisers of several widths at once: a tensor becomes the sum of what each width makes of it, by shares that are
learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calib.formats.quantizers import ActivationQuantizer
from smpq.training.lsq import LearnedActivation, LearnedWeight, TrainedQuantizer

FLOAT = -1
"""What stands for the tensor itself where one candidate is chosen."""


class FormatMixture(nn.Module):
    """The parameters alpha `[k]` of k candidates, of which every layer of a group shares one; they start equal.

    `chosen`: the number of the candidate that stands alone, or `FLOAT`; None for the mixture of all.
    """

    def __init__(self, candidates: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(candidates))
        self.chosen: int | None = None

    def shares(self) -> Tensor:
        """Return softmax(alpha) `[k]`."""
        return torch.softmax(self.alpha, 0)


class MixedWeight(TrainedQuantizer):
    """sum_b share_b Q_b(W): one float weight, a learned step for each width; None stands for the float weight itself.

    EdMIPS, arXiv 2004.05795, section 3.2; LSQ in place of its fixed steps is ours.
    """

    def __init__(self, candidates: Sequence[LearnedWeight | None], choice: FormatMixture) -> None:
        super().__init__()
        self.choice = choice
        self.candidates = nn.ModuleList(nn.Identity() if candidate is None else candidate for candidate in candidates)

    def rounded(self, weight: Tensor) -> list[Tensor]:
        """Return what every candidate makes of the weight, same shape."""
        return [candidate(weight) for candidate in self.candidates]

    def forward(self, weight: Tensor) -> Tensor:
        """Return the mixture, or what the chosen candidate makes of the weight."""
        if self.choice.chosen is not None:
            return _alone(self.candidates, self.choice.chosen, weight)
        return blend(self.rounded(weight), self.choice.shares())

    def project(self) -> None:
        """Keep the steps positive."""
        _project(self.candidates)


class MixedActivation(TrainedQuantizer):
    """sum_b share_b Q_b(X), as MixedWeight."""

    def __init__(self, candidates: Sequence[LearnedActivation | None], choice: FormatMixture) -> None:
        super().__init__()
        self.choice = choice
        self.candidates = nn.ModuleList(nn.Identity() if candidate is None else candidate for candidate in candidates)

    def quantizers(self) -> list[ActivationQuantizer | None]:
        """Return the grid of each candidate as it is now, None for the float one."""
        with torch.no_grad():
            return [
                candidate.quantizer() if isinstance(candidate, LearnedActivation) else None
                for candidate in self.candidates
            ]

    def forward(self, tensor: Tensor) -> Tensor:
        """Return the mixture, or what the chosen candidate makes of the tensor."""
        if self.choice.chosen is not None:
            return _alone(self.candidates, self.choice.chosen, tensor)
        if len(self.candidates) == 1:
            only: Tensor = self.candidates[0](tensor)
            return only
        zero = torch.zeros((), device=tensor.device)
        steps = [candidate.step if isinstance(candidate, LearnedActivation) else zero for candidate in self.candidates]
        mixed: Tensor = _MixRounded.apply(tensor, self.choice.shares(), self.quantizers(), *steps)
        return mixed

    def project(self) -> None:
        """Keep the steps positive."""
        _project(self.candidates)


class SharedRounding:
    """The mixture of an activation with given shares, for evaluation: rounds to the grids whose share is above 0
    only.
    """

    def __init__(self, quantizers: Sequence[ActivationQuantizer | None], shares: Sequence[float]) -> None:
        self._parts = [(quantizer, share) for quantizer, share in zip(quantizers, shares, strict=True) if share > 0]

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the mixture; a single grid with share 1 gives exactly what its quantiser gives."""
        return blend(
            [tensor if quantizer is None else quantizer(tensor) for quantizer, _ in self._parts],
            [share for _, share in self._parts],
        )


def blend(tensors: Sequence[Tensor], shares: Sequence[float] | Tensor) -> Tensor:
    """Return the sum of shares times tensors; one tensor whose share is the number 1 comes back as it is."""
    if len(tensors) == 1 and not isinstance(shares, Tensor) and shares[0] == 1.0:
        return tensors[0]
    total = tensors[0] * shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total = total + tensor * share if isinstance(share, Tensor) else total.add_(tensor, alpha=share)
    return total


class _MixRounded(torch.autograd.Function):
    """The mixture and its gradients in few passes over the tensor; those of tensor and steps are
    LearnedActivation's.
    """

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, shares: Tensor, quantizers: Sequence[ActivationQuantizer | None], *steps: Tensor
    ) -> Tensor:
        rounded = [tensor if quantizer is None else quantizer(tensor) for quantizer in quantizers]
        weights = shares.cpu().tolist()
        total: Tensor = rounded[0] * weights[0]
        for part, weight in zip(rounded[1:], weights[1:], strict=True):
            total.add_(part, alpha=weight)
        ctx.save_for_backward(tensor, *rounded)
        ctx.quantizers = quantizers
        ctx.shares = weights
        ctx.step_shape = steps[0].shape
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        tensor, *rounded = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=_order(tensor))
        by_tensor = torch.zeros_like(tensor)
        by_share: list[Tensor] = []
        by_step: list[Tensor | None] = []
        for part, weight, quantizer in zip(rounded, ctx.shares, ctx.quantizers, strict=True):
            along = _dot(gradient, part)
            by_share.append(along)
            if quantizer is None:
                by_tensor.add_(gradient, alpha=weight)
                by_step.append(None)
                continue
            low, high = quantizer.real_limits
            half = quantizer.scale / 2
            inside = torch.ops.aten.hardtanh_backward(gradient, tensor, low - half, high + half)
            by_tensor.add_(inside, alpha=weight)
            lowest, highest = quantizer.limits
            largest = max(highest - quantizer.zero_point, quantizer.zero_point - lowest)
            change = (along - _dot(inside, tensor)) / quantizer.scale
            by_step.append((weight * change / math.sqrt(tensor.numel() * largest)).reshape(ctx.step_shape))
        return by_tensor, torch.stack(by_share), None, *by_step


def _alone(candidates: nn.ModuleList, chosen: int, tensor: Tensor) -> Tensor:
    found: Tensor = tensor if chosen == FLOAT else candidates[chosen](tensor)
    return found


def _order(tensor: Tensor) -> torch.memory_format:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Sum of products, without a temporary where both tensors lie in memory in the same order."""
    if _order(first) == torch.channels_last and first.stride() == second.stride():
        return torch.dot(first.permute(0, 2, 3, 1).reshape(-1), second.permute(0, 2, 3, 1).reshape(-1))
    return torch.dot(first.reshape(-1), second.reshape(-1))


def _project(candidates: nn.ModuleList) -> None:
    for candidate in candidates:
        if isinstance(candidate, TrainedQuantizer):
            candidate.project()
