"""The squared error of the block's output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.reconstruction.losses.base import Sensitivity, reconstruction_loss

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@reconstruction_loss("mse", paper="AdaRound, Nagel et al. ICML 2020 (arXiv 2004.10568), on blocks")
class SquaredError:
    """Squared error, summed over channels and averaged over samples and positions."""

    def __init__(self, channels: int = 1) -> None:
        self._channels = channels

    def learn(self, seen: Iterable[Sensitivity]) -> None:
        """Nothing to learn."""

    def __call__(self, error: Tensor, index: Tensor) -> Tensor:  # noqa: ARG002 - what every loss is given
        """Return the cost."""
        return error.square().sum(self._channels).mean() if error.dim() > 1 else error.square().mean()
