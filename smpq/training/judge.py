"""A graph in training, judged on calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.errors import UserError
from calib.task import Batch, Task
from smpq.training.finetuned import Judged
from smpq.training.placing import batch_on
from smpq.value.metric import collected
from smpq.value.resampling import UndefinedError
from smpq.value.value import measure_of


class Trained(Protocol):
    """A network in training, on its device."""

    device: str

    def eval(self) -> Any:
        """Compute from now on as the network that is made of it would."""
        ...

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Return its output as it is now."""
        ...

    def reference(self, inputs: Sequence[Tensor]) -> Any:
        """Return the output of the float network."""
        ...


class Judge:
    """Judges a network in training, as it is now, on calibration data."""

    def __init__(self, task: Task, graph: Trained, batches: Sequence[Batch], value: str) -> None:
        self._task = task
        self._graph = graph
        self._batches = batches
        self._value = value

    def __call__(self) -> Judged:
        """Return the mean value and the metric, which is worked out on the CPU; where the data have no targets, the
        value stands for both.
        """
        values, metric, judged = [], collected(self._task), False
        measure = measure_of(self._task, self._value) if self._value != "metric" else None
        self._graph.eval()
        with torch.no_grad():
            for index, given in enumerate(self._batches):
                batch = batch_on(given, self._graph.device)
                output = self._graph.run(batch.inputs)
                if given.target is not None:  # where users' own functions expect it
                    metric.take(index, pytree.tree_map_only(Tensor, Tensor.cpu, output), given)
                    judged = True
                if measure is not None:  # the float model anew each time: its outputs may not fit into memory
                    taught = self._graph.reference(batch.inputs) if self._value == "kl" else None
                    values.append(measure(output, taught, batch))
        value = float(torch.cat(values).mean()) if values else None
        if not judged and value is not None:
            return Judged(value, value)
        try:
            found = metric.value
        except UndefinedError as error:
            raise UserError(f"fine-tuning is judged on the calibration batches: {error}") from error
        return Judged(found if value is None else value, found)
