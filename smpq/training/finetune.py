"""Fine-tune a quantised model: weights, steps and BatchNorm of one policy, taught by labels and by the float model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from calib.formats.quantizers import QuantizedWeight
from calib.network.fold import Folded
from calib.network.graph import TracedModel
from calib.network.units import Unit
from calib.task import Batch, Task
from smpq.quantized.plan import QuantPlan
from smpq.training.finetuned import FineTunedWeights
from smpq.training.judge import Judge
from smpq.training.loop import Loop, epoch_length, passes, some_inputs
from smpq.training.placing import CPU, repeatable_on
from smpq.training.plan import attach_plan
from smpq.training.settings import FineTuneSettings
from smpq.training.trainable import TrainableGraph

_REPORT_EVERY = 20


@dataclass(frozen=True)
class TrainingProgress:
    """Where the training stands: steps done, steps in all, mean loss since the last report."""

    step: int
    steps: int
    loss: float


def each_tenth(say: Callable[[str], None], what: str) -> Callable[[TrainingProgress], None]:
    """Return who is told of every report, and says one line for each tenth of the steps; `what` is being done."""
    told = 0

    def report(progress: TrainingProgress) -> None:
        nonlocal told
        tenth = 10 * progress.step // progress.steps
        if tenth > told:
            told = tenth
            say(f"{what}: step {progress.step} of {progress.steps}, loss {progress.loss:.4f}")

    return report


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
    with repeatable_on(device), torch.enable_grad():  # whatever the caller has switched off
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
    graph.estimate_statistics(some_inputs(subject.task, graph, settings.seed))
    after = judge()
    kept: Literal["start", "end"] = "end"
    if settings.keep == "better" and not after.value >= before.value:
        graph.load_state_dict(start)
        after, kept = before, "start"
    return FineTunedWeights(
        subject.key,
        subject.fingerprint,
        {name: tensor.cpu() for name, tensor in graph.fold().items()},
        weights_of(graph, subject.plan.weights),
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
    total = settings.steps or max(round(settings.epochs * epoch_length(task, graph, settings.seed)), 1)
    loop = Loop(graph, task, settings, total)
    history: list[dict[str, float]] = []
    since: list[float] = []
    graph.train()
    for step, batch in enumerate(itertools.islice(passes(task, graph, settings.seed), total)):
        since.append(loop.step(step, batch))
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == total:
            history.append({"step": step + 1, "loss": sum(since) / len(since)})
            report(TrainingProgress(step + 1, total, history[-1]["loss"]))
            since.clear()
    graph.eval()
    return history


def _snapshot(graph: TrainableGraph) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in graph.state_dict().items()}


def weights_of(graph: TrainableGraph, paths: Iterable[str]) -> dict[str, QuantizedWeight]:
    """Return the integers and steps of units by path, BatchNorm folded, on the CPU."""
    found = {path: graph.quantized(path) for path in paths}
    return {
        path: replace(weight, values=weight.values.cpu(), scale=weight.scale.cpu()) for path, weight in found.items()
    }
