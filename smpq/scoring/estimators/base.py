"""What every estimator of Shapley values is given, and the registry of estimators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from calib.declared import Declared, Interval, check_declared
from calib.errors import UserError
from smpq.choices import ESTIMATORS
from smpq.scoring.estimators.result import Estimate

Floats: TypeAlias = npt.NDArray[np.float64]
Coalitions: TypeAlias = npt.NDArray[np.bool_]

Game: TypeAlias = Callable[[Coalitions], Floats]
"""Called with `[k, players]`, True where a player is a member; returns the `[k]` values of the coalitions."""

Stable: TypeAlias = Callable[[Floats, Floats], bool]
"""Called now and then with the values `[players]` and their covariance `[players, players]`; True when no decision
would change.
"""


@dataclass(frozen=True)
class Stopping:
    """When enough has been sampled.

    `evaluations`: how many coalitions may be evaluated; one that comes again is not counted again. `precision`: the
    largest standard error that is small enough, as a fraction of the spread (population standard deviation) of the
    values; 0 asks for all evaluations.
    """

    evaluations: Annotated[int, Declared("coalitions that may be evaluated", Interval(1))]
    precision: Annotated[
        float, Declared("largest standard error, as a fraction of the spread", Interval(0, 1, below=True))
    ] = 0.0

    def __post_init__(self) -> None:
        check_declared(self)


class Estimator(Protocol):
    """An estimator of Shapley values; its options are its attributes.

    Equal arguments give equal estimates. Raises UserError when the evaluations do not suffice for an interval (two
    independent samples), with the least that would.
    """

    def estimate(
        self, game: Game, players: int, stopping: Stopping, seed: int, stable: Stable | None = None
    ) -> Estimate:
        """Return the Shapley values of `game`."""
        ...


_Factory = TypeVar("_Factory", bound=Callable[..., Estimator])


def estimator(name: str) -> Callable[[_Factory], _Factory]:
    """Register an estimator under the name that `--estimator` takes.

    1. Write a frozen dataclass in a file of its own; its fields are the options, each with a default.
    2. Give it `estimate` as in Estimator. Put the game into a `CountedGame`, and ask it for whole matrices: a game
       evaluates many coalitions together much faster than one by one.
    3. If one sample is a fixed set of coalitions, describe it as a `Design` and leave the rest to `sample_designs`;
       otherwise collect independent samples in `Samples`, which also knows when to stop.
    4. Decorate the class with `@estimator("my-name")`. A built-in one has a row in `smpq.choices`.
    """

    def register(factory: _Factory) -> _Factory:
        ESTIMATORS[name] = factory
        return factory

    return register


def estimator_from_name(name: str, **options: Any) -> Estimator:
    """Return a registered estimator with these options; UserError lists the names."""
    if name not in ESTIMATORS:
        raise UserError(f"unknown estimator {name!r}: choose one of {', '.join(ESTIMATORS)}")
    found: Estimator = ESTIMATORS[name](**options)
    return found
