"""Fine-tune a quantised model: weights, steps and BatchNorm of one policy, taught by labels and by the float model."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.data import training_batches
from calib.errors import UserError
from calib.formats.quantizers import QuantizedWeight
from calib.network.fold import Folded
from calib.network.graph import TracedModel
from calib.network.units import Unit
from calib.task import Batch, Task
from smpq.quantized.plan import QuantPlan
from smpq.training.finetuned import FineTunedWeights
from smpq.training.judge import Judge
from smpq.training.placing import CPU, batch_on, repeatable_on
from smpq.training.plan import attach_plan
from smpq.training.settings import FineTuneSettings
from smpq.training.trainable import TrainableGraph
from smpq.value.value import divergence

_WARM_UP = 0.3
_FIRST_SHARE = 1 / 25
_MOMENTUM = 0.9
_STATISTICS_SAMPLES = 8192
_REPORT_EVERY = 20


@dataclass(frozen=True)
class TrainingProgress:
    """Where the training stands: steps done, steps in all, mean loss since the last report."""

    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Subject:
    """What is fine-tuned: the folded trace, the model before folding, and the plan of the policy, which `key` names."""

    task: Task
    traced: TracedModel
    units: tuple[Unit, ...]
    original: torch.nn.Module
    folded: tuple[Folded, ...]
    plan: QuantPlan
    key: str
    fingerprint: str


def finetune(
    subject: Subject,
    batches: Sequence[Batch],
    settings: FineTuneSettings,
    report: Callable[[TrainingProgress], None] = lambda _: None,
    device: str = CPU,
) -> FineTunedWeights:
    """Train the plan's weights on the task's training data; `batches` are calibration data, which judge start and end.

    Everything is computed on `device`, as torch names it, and what is returned is on the CPU.

    What training ends with is kept, or with `settings.keep` "better" what it started from where that is better.
    UserError when the task has no training data, and when the loss is not a number any more.
    """
    with repeatable_on(device):
        return _finetune(subject, batches, settings, report, device)


def _finetune(
    subject: Subject,
    batches: Sequence[Batch],
    settings: FineTuneSettings,
    report: Callable[[TrainingProgress], None],
    device: str,
) -> FineTunedWeights:
    started = time.monotonic()
    graph = TrainableGraph(subject.traced, subject.units, subject.original, subject.folded, device)
    quantizers = attach_plan(graph, subject.plan, settings.learn_activations, settings.start)
    judge = Judge(subject.task, graph, batches, settings.value)
    before = judge()
    start = _snapshot(graph)
    history = _train(graph, subject.task, settings, report)
    graph.estimate_statistics(_some_inputs(subject.task, graph, settings.seed))
    after = judge()
    kept: Literal["start", "end"] = "end"
    if settings.keep == "better" and not after.value >= before.value:
        graph.load_state_dict(start)
        after, kept = before, "start"
    return FineTunedWeights(
        subject.key,
        subject.fingerprint,
        {name: tensor.cpu() for name, tensor in graph.fold().items()},
        _weights(graph, subject.plan),
        {name: module.quantizer() for name, module in quantizers.items()},
        before,
        after,
        kept,
        time.monotonic() - started,
        asdict(settings),
        history,
    )


def _train(
    graph: TrainableGraph, task: Task, settings: FineTuneSettings, report: Callable[[TrainingProgress], None]
) -> list[dict[str, float]]:
    total = settings.steps or max(round(settings.epochs * _epoch_length(task, graph, settings.seed)), 1)
    groups = graph.groups()
    optimizer = torch.optim.SGD(
        [
            {"params": groups.weights, "peak": settings.learning_rate, "weight_decay": settings.weight_decay},
            {"params": groups.others, "peak": settings.learning_rate},
            {"params": groups.quantizers, "peak": settings.step_learning_rate},
        ],
        lr=settings.learning_rate,
        momentum=_MOMENTUM,
        nesterov=True,
    )
    history: list[dict[str, float]] = []
    since: list[float] = []
    graph.train()
    for step, batch in enumerate(itertools.islice(_passes(task, graph, settings.seed), total)):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * one_cycle(step / total)
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(graph, task, batch, settings)
        since.append(float(loss.detach()))
        if not math.isfinite(since[-1]):
            raise UserError(
                f"fine-tuning diverged: the loss is {since[-1]} after {step} steps. Use a smaller learning rate (now "
                f"{settings.learning_rate}), or give the most sensitive layers more bits"
            )
        loss.backward()
        optimizer.step()
        graph.project()
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == total:
            history.append({"step": step + 1, "loss": sum(since) / len(since)})
            report(TrainingProgress(step + 1, total, history[-1]["loss"]))
            since.clear()
    graph.eval()
    return history


def one_cycle(done: float) -> float:
    """Return the share of the peak learning rate after a share `done` of the steps: up in a half cosine from 1/25, down
    to 0.
    """
    if done < _WARM_UP:
        return _FIRST_SHARE + (1 - _FIRST_SHARE) * (1 - math.cos(math.pi * done / _WARM_UP)) / 2
    return (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2


def _loss(graph: TrainableGraph, task: Task, batch: Batch, settings: FineTuneSettings) -> Tensor:
    output = graph.run(batch.inputs)
    total = torch.zeros((), device=graph.device)
    if settings.labels:
        total = total + settings.labels * _task_loss(task, output, batch).mean()
    if settings.distillation:
        taught = _cooled(graph.reference(batch.inputs), settings.temperature)
        apart = getattr(task, "divergence", divergence)(_cooled(output, settings.temperature), taught)
        total = total + settings.distillation * apart.mean()
    return total


def _task_loss(task: Task, output: Any, batch: Batch) -> Tensor:
    """Return the task's loss `[n]` as it comes, since it is trained on; UserError when it fails or has no gradient."""
    try:
        values = task.loss(output, batch.target)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the task's loss() failed: {type(error).__name__}: {error}") from error
    count = len(batch.inputs[0])
    if not isinstance(values, Tensor) or values.shape != (count,):
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"the task's loss() must return one value per sample, [{count}], not {found}")
    if not values.requires_grad:
        raise UserError(
            "the task's loss() has no gradient: compute it with torch operations on the output, without no_grad or "
            "detach"
        )
    return values


def _cooled(output: Any, temperature: float) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor / temperature if tensor.is_floating_point() else tensor, output
    )


def _passes(task: Task, graph: TrainableGraph, seed: int) -> Iterator[Batch]:
    """Yield usable batches of one pass after the other, without end; UserError when a pass has none."""
    for epoch in itertools.count(seed * 10_000):
        usable = 0
        for batch in training_batches(task, epoch, graph.traced.sizes):
            if _fits(batch, graph):
                usable += 1
                yield batch_on(batch, graph.device)
        if not usable:
            raise UserError(
                "training() has no batch that the model can be trained on: batches need two samples or more"
            )


def _fits(batch: Batch, graph: TrainableGraph) -> bool:
    """A batch of one sample has no variance; a model traced for one batch size takes no other (the last one of a
    pass).
    """
    size = len(batch.inputs[0])
    return size > 1 and (graph.traced.dynamic_batch or size == len(graph.traced.example[0]))


def _epoch_length(task: Task, graph: TrainableGraph, seed: int) -> int:
    return sum(_fits(batch, graph) for batch in training_batches(task, seed * 10_000, graph.traced.sizes))


def _some_inputs(task: Task, graph: TrainableGraph, seed: int) -> Iterator[Sequence[Tensor]]:
    seen = 0
    for batch in training_batches(task, seed * 10_000, graph.traced.sizes):
        if seen >= _STATISTICS_SAMPLES:
            return
        if _fits(batch, graph):
            seen += len(batch.inputs[0])
            yield batch.inputs


def _snapshot(graph: TrainableGraph) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in graph.state_dict().items()}


def _weights(graph: TrainableGraph, plan: QuantPlan) -> dict[str, QuantizedWeight]:
    found = {path: graph.quantized(path) for path in plan.weights}
    return {
        path: replace(weight, values=weight.values.cpu(), scale=weight.scale.cpu()) for path, weight in found.items()
    }
