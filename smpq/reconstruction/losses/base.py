"""What a reconstruction loss declares, and the registry of losses. Importing it does not load torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sensitivity:
    """What a run of the quantised block, with everything behind it in float, says of one batch.

    `gradient` is that of the divergence of the network's output from the float one, by the block's output; `error` the
    difference of the block's output from the float one; both `[n, ...]`. `index` says which samples they are.
    """

    gradient: Tensor
    error: Tensor
    index: Tensor


class Loss(Protocol):
    """The cost of a block's error, for one block."""

    def learn(self, seen: Iterable[Sensitivity]) -> None:
        """Take in how the output depends on the block's output now, on all samples; called `times` times. `seen` may be
        gone through more than once.
        """
        ...

    def __call__(self, error: Tensor, index: Tensor) -> Tensor:
        """Return the cost of an error `[n, ...]` of the samples `index` `[n]`, a number with a gradient."""
        ...


@dataclass(frozen=True)
class LossKind:
    """A loss: `paper`, and how many `times` a block, spread over its iterations, it asks for sensitivities. `make` is
    given the axis of the output that counts channels.
    """

    name: str
    paper: str
    times: int
    make: Callable[[int], Loss]


LOSSES: dict[str, LossKind] = {}


def reconstruction_loss(
    name: str, *, paper: str, times: int = 0
) -> Callable[[Callable[[int], Loss]], Callable[[int], Loss]]:
    """Register a loss under the name that `--loss` takes. It is a class in a file of its own, imported in
    `smpq.reconstruction.losses`, that is made once for each output of a block, with the axis of its channels.
    """

    def register(make: Callable[[int], Loss]) -> Callable[[int], Loss]:
        LOSSES[name] = LossKind(name, paper, times, make)
        return make

    return register
