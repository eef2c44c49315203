"""Train a supernet, and let the Shapley values of its operations accumulate while it trains."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calib.data import training_batches
from calib.errors import UserError
from calib.task import Batch, SetTask
from smpq.scoring.estimators.result import Estimate
from smpq.supernet.contributions import Contributions
from smpq.supernet.game import SupernetGame
from smpq.supernet.network import Supernet
from smpq.supernet.paths import draw_path, leave_path
from smpq.supernet.removal import Removals, RemovalWalks
from smpq.supernet.settings import SupernetSettings
from smpq.supernet.state import SupernetState
from smpq.training.loop import NO_BATCH, distilled, fits, multiplying, one_cycle, task_loss
from smpq.training.placing import batch_on, repeatable_on
from smpq.value.value import measure_of

_MOMENTUM = 0.9
_TEMPERATURE = 2.0
"""Of the distillation."""
_ALPHA_BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class EpochReport:
    """Where the training stands: epochs done, epochs in all, mean loss, and the Shapley values by value if they were
    estimated.
    """

    epoch: int
    epochs: int
    loss: float
    estimates: Mapping[str, Estimate]


def train(
    supernet: Supernet,
    held_out: Sequence[Batch],
    settings: SupernetSettings,
    state: SupernetState | None = None,
    keep: Callable[[SupernetState], None] = lambda _: None,
    report: Callable[[EpochReport], None] = lambda _: None,
) -> SupernetState:
    """Train `supernet` in place, on its device, on from `state` if there is one; `keep` is given the state after every
    epoch.

    `held_out` batches are calibration data, which are never trained on. The same arguments give the same result,
    whether or not the training was stopped between. UserError when the task has no training data, and when the loss is
    not a number any more.
    """
    with repeatable_on(supernet.graph.device), torch.enable_grad():  # whatever the caller has switched off
        return _train(supernet, held_out, settings, state, keep, report)


def _train(
    supernet: Supernet,
    held_out: Sequence[Batch],
    settings: SupernetSettings,
    state: SupernetState | None,
    keep: Callable[[SupernetState], None],
    report: Callable[[EpochReport], None],
) -> SupernetState:
    weights, alphas = _optimizers(supernet, settings)
    contributions = {value: Contributions.start(supernet.operations) for value in settings.game.values}
    history: list[dict[str, Any]] = []
    if state is None and settings.gamma and settings.first_update <= settings.epochs:
        _check_cut(supernet, _in_turn(held_out, settings.samples, 0))
    if state is not None:
        state.check(supernet, settings.to_json())
        state.restore(supernet, weights, alphas)
        contributions, history = dict(state.contributions), [dict(row) for row in state.history]
    total = settings.epochs * _epoch_length(supernet, settings)
    for epoch in range(len(history), settings.epochs):
        started = time.monotonic()
        loss = _train_epoch(supernet, settings, weights, alphas, epoch, total)
        trained = time.monotonic()
        found = _shapley_values(supernet, held_out, settings, epoch) if epoch + 1 >= settings.first_update else {}
        estimates = {value: removals.estimate for value, removals in found.items()}
        for value, removals in found.items():
            contributions[value] = contributions[value].updated(
                removals, settings.momentum, deviation=settings.deviation
            )
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": loss,
            "complexity": float(supernet.complexity(supernet.shares())),
        }
        row["seconds"] = {"training": trained - started, "shapley": time.monotonic() - trained}
        row["estimates"] = {value: _brief(estimate) for value, estimate in estimates.items()}
        history.append(row)
        state = SupernetState.of(supernet, weights, alphas, contributions, history, settings.to_json())
        keep(state)
        report(EpochReport(epoch + 1, settings.epochs, loss, estimates))
    assert state is not None
    return state


def _check_cut(supernet: Supernet, held_out: Sequence[Batch]) -> None:
    """Raise UserError where walks cannot be cut at a share of the metric: before the training, not in its midst."""
    task, graph = supernet.subject.task, supernet.graph
    measure, values = measure_of(task, "metric"), []
    for batch in (batch_on(each, graph.device) for each in held_out):
        values.append(measure(graph.reference(batch.inputs), None, batch))
    value = float(torch.cat(values).mean())
    if value <= 0:
        raise UserError(
            f"walks through a supernet end below a share of its {task.metric_name}, and that of the float model is "
            f"{value:.4g} on the calibration data: use smpq train-supernet with --gamma 0"
        )


def _optimizers(supernet: Supernet, settings: SupernetSettings) -> tuple[torch.optim.SGD, torch.optim.Adam]:
    groups = supernet.graph.groups()
    weights = torch.optim.SGD(
        [
            {"params": groups.weights, "peak": settings.learning_rate, "weight_decay": settings.weight_decay},
            {"params": groups.others, "peak": settings.learning_rate},
            {"params": supernet.steps(), "peak": settings.step_learning_rate},
        ],
        lr=settings.learning_rate,
        momentum=_MOMENTUM,
        nesterov=True,
    )
    return weights, torch.optim.Adam(supernet.alphas, settings.alpha_learning_rate, _ALPHA_BETAS)


def _train_epoch(
    supernet: Supernet,
    settings: SupernetSettings,
    weights: torch.optim.SGD,
    alphas: torch.optim.Adam,
    epoch: int,
    total: int,
) -> float:
    graph, losses = supernet.graph, []
    graph.train()
    for step, batch in enumerate(_batches(supernet, settings, epoch), epoch * (total // settings.epochs)):
        if settings.paths:
            draw_path(supernet, (settings.seed, step))
        for group in weights.param_groups:
            group["lr"] = group["peak"] * one_cycle(min(step / total, 1.0))
        weights.zero_grad(set_to_none=True)
        alphas.zero_grad(set_to_none=True)
        with multiplying(graph.device, bfloat16=settings.bfloat16):
            loss = _loss(supernet, batch_on(batch, graph.device), settings)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise UserError(
                f"the training of the supernet diverged: the loss is {losses[-1]} in epoch {epoch + 1}. Use a smaller "
                "learning rate "
                f"(now {settings.learning_rate})"
            )
        loss.backward()
        weights.step()
        alphas.step()
        graph.project()
    graph.eval()
    leave_path(supernet)
    return sum(losses) / len(losses)


def _loss(supernet: Supernet, batch: Batch, settings: SupernetSettings) -> Tensor:
    task, graph = supernet.subject.task, supernet.graph
    output = graph.run(batch.inputs)
    total = task_loss(task, output, batch).mean()
    if settings.distillation:
        taught = graph.reference(batch.inputs)
        total = total + settings.distillation * distilled(task, output, taught, batch, _TEMPERATURE)
    return total + settings.complexity * supernet.complexity() if settings.complexity else total


def _batches(supernet: Supernet, settings: SupernetSettings, epoch: int) -> Iterator[Batch]:
    """The usable batches of one epoch."""
    subject, graph = supernet.subject, supernet.graph
    found = training_batches(subject.task, settings.seed * 10_000 + epoch, subject.traced.sizes)
    return itertools.islice((batch for batch in found if fits(batch, graph)), settings.steps)


def _epoch_length(supernet: Supernet, settings: SupernetSettings) -> int:
    """UserError when no batch of a pass can be used, and when a pass has fewer than are asked for."""
    found = sum(1 for _ in _batches(supernet, settings, 0))
    if not found:
        raise UserError(NO_BATCH)
    if settings.steps is not None and found < settings.steps:
        raise UserError(
            f"a pass over the training data has {found} batches, not {settings.steps}: use fewer steps and more epochs"
        )
    return found


def _shapley_values(
    supernet: Supernet, held_out: Sequence[Batch], settings: SupernetSettings, epoch: int
) -> dict[str, Removals]:
    rows, start = [], 0
    for row in supernet.rows.values():
        if len(row) > 1:
            rows.append(tuple(range(start, start + len(row))))
            start += len(row)
    update = epoch + 1 - settings.first_update
    batches = _in_turn(held_out, settings.samples, update)
    cuts = () if isinstance(supernet.subject.task, SetTask) else ("metric",)
    values = (*cuts, *(value for value in settings.game.values if value not in cuts))
    game = SupernetGame(supernet, batches, replace(settings.game, values=values))
    walks = RemovalWalks(tuple(rows), settings.walks, settings.gamma)
    found = walks.estimate(game.with_parts, (settings.seed, epoch))
    means = [removals.marginals.mean(0) for removals in found]
    return {
        value: replace(found[index], parts=np.stack(means[len(values) + index :: len(values)]))
        for index, value in enumerate(values)
        if value in settings.game.values
    }


def _in_turn(batches: Sequence[Batch], samples: int, update: int) -> list[Batch]:
    """Whole batches of at least `samples` samples, or all; each update goes on where the last one stopped."""
    sizes = [len(batch.inputs[0]) for batch in batches]
    needed = next((n for n in range(1, len(batches)) if sum(sizes[:n]) >= samples), len(batches))
    return [batches[(update * needed + index) % len(batches)] for index in range(needed)]


def _brief(estimate: Estimate) -> dict[str, Any]:
    return {**estimate.to_json(), "covariance": None}
