"""What steers a training to its budget: the pressure on the bits grows while the cost is behind its course."""

from __future__ import annotations

from dataclasses import dataclass

_ARRIVAL = 0.9


@dataclass
class Pressure:
    """The weight of what drives bits out (BSQ's alpha), steered to bring the cost to its limit in time.

    The course of the cost over its limit is a straight line in its logarithm, from what it is at the start to 1 at nine
    tenths of the search: the last tenth is for what is behind. At each adjustment the weight is multiplied by `growth`
    where the cost is above its course, and divided by it where it is below.
    """

    weight: float
    start: float
    growth: float

    def steer(self, done: float, excess: float) -> None:
        """Change the weight; `done` is the share of the search that is over, `excess` the cost over its limit."""
        course = self.start ** max(0.0, 1 - done / _ARRIVAL)
        self.weight *= self.growth if excess > course else 1 / self.growth
