"""How a quantised model is fine-tuned; importing it does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from calib.declared import SEEDS, Declared, Group, Interval, OneOf, check_declared
from calib.errors import UserError
from smpq.choices import VALUES

STARTS = ("nearby", "rounded", "float")
KEEPS = ("end", "better")
_ABOVE_ZERO, _NOT_NEGATIVE = Interval(0, above=True), Interval(0)
BFLOAT16 = Annotated[bool, Declared("layers multiply in bfloat16 while training", option="--bfloat16/--float32")]


@dataclass(frozen=True)
class FineTuneSettings:
    """How to train.

    `epochs` may be fractional; `steps` counts batches and replaces it. The learning rates rise over the first 30 % of
    the steps and fall in a half cosine. The loss is the task's mean loss times `labels`, plus `distillation` times the
    KL divergence of the float model at `temperature`. `learn_activations` trains the steps of activations as well; None
    does so for those of fewer than 8 bits. `start` says where weights begin: "nearby" as close to the float weight as
    the calibrated integer allows, "rounded" at that integer, "float". `value` judges on calibration data as the search
    does: kl, loss or metric. `keep` "end" keeps what training ends with; "better" keeps the start where calibration
    data like it better, which is fair only if the float model has not been trained on them: it knows those by heart,
    and the start with it. With `bfloat16` layers multiply in that type while training, which is faster where the
    processor has instructions for it; what is judged and kept is float32. A seed gives another order of the training
    data.
    """

    epochs: Annotated[float, Declared("passes over the training data", _ABOVE_ZERO, "--epochs", Group.LENGTH)] = 4.0
    steps: Annotated[int | None, Declared("batches in all", Interval(1), unset="by epochs")] = None
    learning_rate: Annotated[
        float, Declared("peak learning rate of weights; that of step sizes is a tenth", _ABOVE_ZERO, "--learning-rate")
    ] = 0.02
    step_learning_rate: Annotated[float, Declared("peak learning rate of step sizes", _ABOVE_ZERO)] = 0.002
    weight_decay: Annotated[float, Declared("weight decay of weights", _NOT_NEGATIVE)] = 5e-5
    labels: Annotated[float, Declared("weight of the task's loss", _NOT_NEGATIVE)] = 1.0
    distillation: Annotated[float, Declared("weight of the divergence from the float model", _NOT_NEGATIVE)] = 4.0
    temperature: Annotated[float, Declared("temperature of that divergence", _ABOVE_ZERO)] = 2.0
    learn_activations: Annotated[
        bool | None,
        Declared(
            "also train the step sizes of activations",
            option="--learn-activations/--fixed-activations",
            unset="of those below 8 bits",
        ),
    ] = None
    start: Annotated[str, Declared("where weights begin", OneOf(STARTS))] = "nearby"
    value: Annotated[str, Declared("what start and end are judged by", OneOf(VALUES))] = "kl"
    keep: Annotated[
        str,
        Declared(
            "which weights are kept (better: those of the start where calibration data like them better)",
            OneOf(KEEPS),
            "--keep",
        ),
    ] = "end"
    bfloat16: BFLOAT16 = False
    seed: Annotated[int, Declared("seed of the order of the training data", SEEDS)] = 0

    def __post_init__(self) -> None:
        check_declared(self)
        if self.labels == 0 and self.distillation == 0:
            raise UserError("the fine-tuning needs labels or distillation: both weights are 0")
