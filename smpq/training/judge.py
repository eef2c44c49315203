"""A graph in training, judged on calibration data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calib.data import per_sample
from calib.errors import UserError
from calib.task import Batch, Task
from smpq.training.finetuned import Judged
from smpq.training.placing import batch_on
from smpq.training.trainable import TrainableGraph
from smpq.value.metric import collected
from smpq.value.resampling import UndefinedError
from smpq.value.value import divergence


class Judge:
    """Judges a graph in training, as it is now, on calibration data."""

    def __init__(self, task: Task, graph: TrainableGraph, batches: Sequence[Batch], value: str) -> None:
        self._task = task
        self._graph = graph
        self._batches = batches
        self._value = value

    def __call__(self) -> Judged:
        """Return the mean value and the metric."""
        values, metric = [], collected(self._task)
        self._graph.eval()
        with torch.no_grad():
            for index, given in enumerate(self._batches):
                batch = batch_on(given, self._graph.device)
                output, count = self._graph.run(batch.inputs), len(batch.inputs[0])
                metric.take(index, output, batch)
                if self._value == "kl":  # anew each time: the float model's outputs may not fit into memory
                    function = getattr(self._task, "divergence", divergence)
                    taught = self._graph.reference(batch.inputs)
                    values.append(-per_sample(function, (output, taught), count, "divergence"))
                elif self._value == "loss":
                    values.append(-per_sample(self._task.loss, (output, batch.target), count, "loss"))
        try:
            found = metric.value
        except UndefinedError as error:
            raise UserError(f"fine-tuning is judged on the calibration batches: {error}") from error
        return Judged(float(torch.cat(values).mean()) if values else found, found)
