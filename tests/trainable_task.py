"""A small task with training data, which goes wrong when `TRAINABLE_FAULT` says how."""

import os
from collections.abc import Iterator

import torch

from calib.task import Batch
from tests.smpq.tunable import Task, batch_of

FAULT = "TRAINABLE_FAULT"


class Trainable(Task):
    name = "trainable"

    def __init__(self, data: object = None, weights: object = None) -> None:
        super().__init__(passes=8)

    def evaluation(self) -> list[Batch]:
        return [batch_of(seed, 64) for seed in range(50, 54)]

    def training(self, epoch: int) -> Iterator[Batch]:
        fault = os.environ.get(FAULT)
        for index, batch in enumerate(super().training(epoch)):
            if index == 3 and fault == "stopped":
                raise KeyboardInterrupt
            if index == 3 and fault == "nan":
                yield Batch((torch.full_like(batch.inputs[0], torch.nan),), batch.target)
            yield batch


def task(data: object = None, weights: object = None) -> Trainable:
    found = Trainable()
    if os.environ.get(FAULT) == "untrained":
        found.training = None  # type: ignore[assignment]
    return found
