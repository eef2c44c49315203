"""What every training has in common: the loss, the optimiser, the learning rate, and the batches in their order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.data import training_batches
from calib.errors import UserError
from calib.task import Batch, Task
from smpq.training.placing import batch_on
from smpq.training.settings import FineTuneSettings
from smpq.training.trainable import TrainableGraph
from smpq.value.divergence import TaskDivergence

_WARM_UP = 0.3
_FIRST_SHARE = 1 / 25
_MOMENTUM = 0.9
_STATISTICS_SAMPLES = 8192
NO_BATCH = (
    "training() has no batch that the model can be trained on: a BatchNorm needs two samples or more, and a model that "
    "takes one number of samples needs that"
)


class Loop:
    """Trains a graph batch by batch: SGD with Nesterov's momentum, the learning rates of the settings in one cycle.

    `total` is the number of steps of that cycle.
    """

    def __init__(self, graph: TrainableGraph, task: Task, settings: FineTuneSettings, total: int) -> None:
        self.graph = graph
        self.total = total
        self._task = task
        self._settings = settings
        groups = graph.groups()
        self.optimizer = torch.optim.SGD(
            [
                {"params": groups.weights, "peak": settings.learning_rate, "weight_decay": settings.weight_decay},
                {"params": groups.others, "peak": settings.learning_rate},
                {"params": groups.quantizers, "peak": settings.step_learning_rate},
            ],
            lr=settings.learning_rate,
            momentum=_MOMENTUM,
            nesterov=True,
        )

    def step(self, index: int, batch: Batch, besides: Callable[[], Tensor | None] = lambda: None) -> float:
        """Take step `index` on a batch that is on the graph's device; returns the loss before it.

        `besides` is called after the forward pass; the loss that it returns is added to that of the settings. UserError
        when the sum is not a number any more.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * one_cycle(index / self.total)
        self.optimizer.zero_grad(set_to_none=True)
        with multiplying(self.graph.device, bfloat16=self._settings.bfloat16):
            loss = loss_of(self.graph, self._task, batch, self._settings)
        added = besides()
        loss = loss if added is None else loss + added
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"fine-tuning diverged: the loss is {value} after {index} steps. Use a smaller learning rate (now "
                f"{self._settings.learning_rate}), or give the most sensitive layers more bits"
            )
        loss.backward()
        self.optimizer.step()
        self.graph.project()
        return value

    @property
    def rate(self) -> float:
        """Learning rate of weights in the last step."""
        return float(self.optimizer.param_groups[0]["lr"])


def multiplying(device: str, *, bfloat16: bool) -> AbstractContextManager[Any]:
    """Return a context in which layers multiply in bfloat16 (torch.autocast), or as usual; parameters and their
    gradients stay in float32.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16) if bfloat16 else nullcontext()


def one_cycle(done: float) -> float:
    """Return the share of the peak learning rate after a share `done` of the steps: up in a half cosine from 1/25, down
    to 0.
    """
    if done < _WARM_UP:
        return _FIRST_SHARE + (1 - _FIRST_SHARE) * (1 - math.cos(math.pi * done / _WARM_UP)) / 2
    return (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2


def loss_of(graph: TrainableGraph, task: Task, batch: Batch, settings: FineTuneSettings) -> Tensor:
    """Return the loss `[]` of a batch: the task's own and the divergence from the float model, as the settings weigh
    them.
    """
    output = graph.run(batch.inputs)
    total = torch.zeros((), device=graph.device)
    if settings.labels:
        total = total + settings.labels * task_loss(task, output, batch).mean()
    if settings.distillation:
        taught = graph.reference(batch.inputs)
        total = total + settings.distillation * distilled(task, output, taught, batch, settings.temperature)
    return total


def distilled(task: Task, output: Any, taught: Any, batch: Batch, temperature: float) -> Tensor:
    """Return the mean divergence `[]` of a batch's outputs from those of the float model, both at a temperature;
    UserError as `task_loss`.
    """
    arguments = _cooled(output, temperature), _cooled(taught, temperature), batch.target
    return _trained_on(TaskDivergence(task), arguments, batch, "divergence").mean()


def task_loss(task: Task, output: Any, batch: Batch) -> Tensor:
    """Return the task's loss `[n]` as it comes, since it is trained on; UserError when it fails or has no gradient."""
    return _trained_on(task.loss, (output, batch.target), batch, "loss")


def _trained_on(function: Callable[..., Tensor], arguments: tuple[Any, ...], batch: Batch, what: str) -> Tensor:
    """Return what a function of the task gives for a batch `[n]`; UserError when it fails or has no gradient."""
    try:
        values = function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the task's {what}() failed: {type(error).__name__}: {error}") from error
    count = len(batch.inputs[0])
    if not isinstance(values, Tensor) or values.shape != (count,):
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"the task's {what}() must return one value per sample, [{count}], not {found}")
    if not values.requires_grad:
        raise UserError(
            f"the task's {what}() has no gradient: compute it with torch operations on the output, without no_grad or "
            "detach"
        )
    return values


def _cooled(output: Any, temperature: float) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor / temperature if tensor.is_floating_point() else tensor, output
    )


def passes(task: Task, graph: TrainableGraph, seed: int, first: int = 0) -> Iterator[Batch]:
    """Yield usable batches of one pass after the other, from pass `first` on, without end; UserError when a pass has
    none.
    """
    for epoch in itertools.count(seed * 10_000 + first):
        usable = 0
        for batch in training_batches(task, epoch, graph.traced.sizes):
            if fits(batch, graph):
                usable += 1
                yield batch_on(batch, graph.device)
        if not usable:
            raise UserError(NO_BATCH)


def fits(batch: Batch, graph: TrainableGraph) -> bool:
    """Whether a graph can be trained on a batch: one sample has no variance for a BatchNorm, and a model traced for one
    batch size takes no other (the last one of a pass).
    """
    size = len(batch.inputs[0])
    return (size > 1 or not graph.normalises) and (graph.traced.dynamic_batch or size == len(graph.traced.example[0]))


def epoch_length(task: Task, graph: TrainableGraph, seed: int) -> int:
    """Return how many usable batches a pass has; UserError when it has none."""
    found = sum(fits(batch, graph) for batch in training_batches(task, seed * 10_000, graph.traced.sizes))
    if not found:
        raise UserError(NO_BATCH)
    return found


def some_inputs(task: Task, graph: TrainableGraph, seed: int) -> Iterator[Sequence[Tensor]]:
    """Yield inputs that the statistics of BatchNorm are measured on: the first 8192 samples of a pass."""
    seen = 0
    for batch in training_batches(task, seed * 10_000, graph.traced.sizes):
        if seen >= _STATISTICS_SAMPLES:
            return
        if fits(batch, graph):
            seen += len(batch.inputs[0])
            yield batch.inputs
