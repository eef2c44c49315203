"""A diagonal plus a low rank of the Fisher information, from pairs of gradients and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smpq.reconstruction.losses.base import Sensitivity, reconstruction_loss

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

_RANK = 5


@reconstruction_loss("fima-q", paper="FIMA-Q, Wu et al. CVPR 2025 (arXiv 2506.11543)", times=_RANK)
class LowRankFisher:
    """The divergence is half of e' F e for an error e of the block's output, and its gradient F e. Each time that
    sensitivities are learnt gives a pair of a mean gradient and a mean error, of absolute values over the samples.

    Low rank: (e G') (D D')^-1 (e G')' with the gradients G and errors D as rows. Diagonal: e^2 times the mean gradient.
    Each is divided by what it was when it was learnt last, and they are added. As in the authors' code.
    """

    def __init__(self, channels: int = 1) -> None:  # noqa: ARG002 - what every loss is given
        self._gradients: list[Tensor] = []
        self._errors: list[Tensor] = []
        self._inverse: Tensor | None = None
        self._first = (1.0, 1.0)

    def learn(self, seen: Iterable[Sensitivity]) -> None:
        """Add a pair, and set what both parts are divided by."""
        import torch

        count, gradient, error = 0, torch.zeros(()), torch.zeros(())
        for each in seen:
            count += len(each.error)
            gradient = each.gradient.abs().flatten(1).sum(0) + gradient.to(each.gradient.device)
            error = each.error.abs().flatten(1).sum(0) + error.to(each.error.device)
        self._gradients.append(gradient / count)
        self._errors.append(error / count)
        errors = torch.stack(self._errors)
        self._inverse = torch.linalg.pinv(errors @ errors.T)
        parts = [[float(part) for part in self.parts(each.error)] for each in seen]
        tiny = torch.finfo(torch.float32).tiny
        self._first = (
            max(abs(sum(part[0] for part in parts)) / len(parts), tiny),
            max(sum(part[1] for part in parts) / len(parts), tiny),
        )

    def __call__(self, error: Tensor, index: Tensor) -> Tensor:  # noqa: ARG002 - what every loss is given
        """Return the cost."""
        low_rank, diagonal = self.parts(error)
        return low_rank / self._first[0] + diagonal / self._first[1]

    def parts(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cost along the pairs that were learned, and that of each element by itself, of a mean sample."""
        import torch

        assert self._inverse is not None
        gradients, size = torch.stack(self._gradients), error.abs().flatten(1)
        along = size @ gradients.T
        low_rank = ((along @ self._inverse) * along).sum(1).mean()
        return low_rank, (size.square() * gradients.mean(0)).sum(1).mean()
