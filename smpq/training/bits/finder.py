"""What a way of finding bits has to do while weights are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from smpq.problem.policy import Space
from smpq.solve.allocate import Ceiling
from smpq.training.bits.ladder import Ladders, ladders_of
from smpq.training.bits.rungs import Rungs
from smpq.training.lsq import LearnedActivation, LearnedWeight


class Finder(ABC):
    """Finds the bits of a graph's groups during the first part of its training.

    It is made with the `Rungs` at the widest widths. It may be stopped after any epoch and made again: `to_json` and
    the state of the graph are all that it keeps, and what is random follows from the seed and the step alone.
    """

    QUANTIZER: ClassVar[type[LearnedWeight]] = LearnedWeight
    """The class of the quantisers of weights."""
    ACTIVATION: ClassVar[type[LearnedActivation]] = LearnedActivation
    """The class of the quantisers of activations whose steps are learned."""
    LEARNS: ClassVar[bool | None] = None
    """Whether steps of activations are learned where the settings do not say; None: those of fewer than 8 bits."""
    SEARCHES: ClassVar[bool] = True
    """Whether widths change at all; otherwise every step is one behind the search."""
    rungs: Rungs

    @classmethod
    def ladders(cls, space: Space, ceilings: Sequence[Ceiling]) -> Ladders:
        """Return the formats by group that widths are chosen from, the widest of which come first."""
        return ladders_of(space, ceilings)

    def begin(self, step: int, done: float) -> None:  # noqa: B027 - not every finder has something to do here
        """Prepare a step of the search; `done` is the share of the search that is over."""

    def after(self, rate: float) -> None:  # noqa: B027 - as begin
        """Do what follows on a step of the optimiser, whose learning rate of weights was `rate`."""

    @abstractmethod
    def adjust(self, done: float) -> None:
        """Take widths away where they are not needed any more, and steer towards the budget."""

    @abstractmethod
    def force(self) -> None:
        """Take away the width that is missed least for what it saves."""

    def settle(self) -> None:  # noqa: B027 - as begin
        """End the search: the widths stay as they are."""

    def refine(self) -> Tensor | None:
        """Return what is added to the loss of a step behind the search."""
        return None

    @abstractmethod
    def to_json(self) -> dict[str, float]:
        """Return the numbers by name that `restore` takes."""

    @abstractmethod
    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Go on with them; the rungs and the graph are restored already."""
