"""How a supernet is trained and its operations are scored; importing it does not load torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import msgspec

from calib.declared import SEEDS, Declared, Group, Interval, OneOf, check_declared
from calib.errors import UserError
from smpq.choices import VALUES
from smpq.training.settings import BFLOAT16

_ABOVE_ZERO, _NOT_NEGATIVE, _FRACTION = Interval(0, above=True), Interval(0), Interval(0, 1, below=True)
WALKS = Interval(2)
"""An interval needs two independent walks."""
GAMMA = _FRACTION
PARTS = 8
"""Of the held-out samples, which say how far these decide."""


@dataclass(frozen=True)
class GameSettings:
    """What a coalition's value is.

    `values`: "metric" (top-1, as in the paper), "loss", "kl", the latter two with a minus; several are worked out at
    the cost of one. With `renormalise` the shares of the operations that are left sum to 1; without, they stay as they
    were and the signal shrinks (Shapley-NAS). `cost_weight` times the complexity, as a fraction of the largest that the
    space has, is subtracted.
    """

    values: Annotated[tuple[str, ...], Declared("what operations contribute to", OneOf(VALUES))] = ("metric",)
    renormalise: Annotated[bool, Declared("shares of the operations that are left sum to 1")] = True
    cost_weight: Annotated[float, Declared("weight of the complexity in the value", _NOT_NEGATIVE)] = 0.0

    def __post_init__(self) -> None:
        check_declared(self)
        if not self.values or len(set(self.values)) != len(self.values):
            raise UserError(f"the supernet's game needs values, each once: some of {', '.join(VALUES)}")


@dataclass(frozen=True)
class SupernetSettings:
    """How to train a supernet, and how to score its operations.

    1. `epochs` passes of `steps` batches each, None for whole passes. Learning rates of weights and steps follow one
       cycle (see FineTuneSettings); that of alpha is constant, by Adam with the betas of DARTS (EdMIPS' SGD moves alpha
       too little in few steps). The loss is the task's, plus `distillation` times the divergence from the float model
       at temperature 2, plus `complexity` (EdMIPS' eta) times `Supernet.complexity`. It is 0 by default: the budget is
       the allocation's business.
    2. After every epoch behind the first `warm_up` of them, `walks` walks over `samples` calibration samples, other
       ones each time, estimate the Shapley values in each of `game.values`. A walk is cut where the metric falls below
       `gamma` times the supernet's.
    3. `momentum` accumulates them; `deviation` subtracts the standard deviation over walks first (Shapley-NAS' lower
       bound).
    4. With `paths` each batch trains one path, an operation of every row drawn at random, and neither alpha nor Shapley
       values: `smpq.supernet.paths` judges policies by their paths.
    5. With `bfloat16` layers multiply in that type while training; values are worked out in float32.
    """

    epochs: Annotated[
        int,
        Declared(
            "passes over the training data; Shapley values are estimated after each of the second half",
            Interval(1),
            "--epochs",
            Group.LENGTH,
        ),
    ] = 10
    steps: Annotated[
        int | None,
        Declared("batches an epoch", Interval(1), "--steps", Group.LENGTH, unset="all of the training data"),
    ] = None
    learning_rate: Annotated[float, Declared("peak learning rate of weights", _ABOVE_ZERO)] = 0.02
    step_learning_rate: Annotated[float, Declared("peak learning rate of step sizes", _ABOVE_ZERO)] = 0.002
    alpha_learning_rate: Annotated[float, Declared("learning rate of the shares of formats", _ABOVE_ZERO)] = 0.02
    weight_decay: Annotated[float, Declared("weight decay of weights", _NOT_NEGATIVE)] = 5e-5
    distillation: Annotated[float, Declared("weight of the divergence from the float model", _NOT_NEGATIVE)] = 0.0
    complexity: Annotated[
        float, Declared("weight of the expected bit operations in the loss", _NOT_NEGATIVE, "--complexity")
    ] = 0.0
    warm_up: Annotated[float, Declared("fraction of the epochs before the first estimate", _FRACTION)] = 0.5
    walks: Annotated[int, Declared("walks for each estimate", WALKS, "--walks", Group.LENGTH)] = 10
    samples: Annotated[
        int, Declared("calibration samples for each estimate", Interval(PARTS), "--held-out", Group.LENGTH)
    ] = 512
    gamma: Annotated[
        float, Declared("walks end below this share of the supernet's metric; 0: never", GAMMA, "--gamma")
    ] = 0.5
    momentum: Annotated[float, Declared("weight of the estimates so far", _FRACTION)] = 0.8
    deviation: Annotated[bool, Declared("subtract the standard deviation over walks")] = False
    paths: Annotated[
        bool,
        Declared(
            "each batch trains one format of each layer, drawn at random, instead of a mixture of all",
            option="--paths/--mixture",
        ),
    ] = False
    bfloat16: BFLOAT16 = False
    game: GameSettings = field(default_factory=GameSettings)
    seed: Annotated[int, Declared("seed of everything random", SEEDS)] = 0

    def __post_init__(self) -> None:
        check_declared(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SupernetSettings:
        """Read what `to_json` gives; UserError for anything else."""
        try:
            found = msgspec.convert(dict(record), cls)
        except msgspec.ValidationError as error:
            raise UserError(
                f"the settings in supernet.safetensors are damaged ({error}): delete it to train the supernet again"
            ) from error
        if found.to_json() != record:
            raise UserError(
                "the settings in supernet.safetensors are not complete, or too many: delete it to train the supernet "
                "again"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the file form."""
        record = asdict(self)
        return {**record, "game": {**record["game"], "values": list(self.game.values)}}

    @property
    def first_update(self) -> int:
        """The number of epochs, from 1, after which the first Shapley values are estimated: never of paths."""
        if self.paths:
            return self.epochs + 1
        return min(math.floor(self.epochs * self.warm_up) + 1, self.epochs)


PATHS = SupernetSettings(epochs=4, distillation=4.0, paths=True)
"""Those of a supernet of paths, where nobody says."""
