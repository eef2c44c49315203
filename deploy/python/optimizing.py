"""From a model and data in memory to an engine: the same run as that of `smpq run`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from calib.errors import UserError
from calib.tasks import IN_MEMORY, held_in_memory
from deploy.python.result import FakeQuantized, Result
from deploy.python.task import Metric, TaskInMemory, TaskWithSelection
from deploy.run.settings import Settings, usual_directory
from deploy.run.workspace import Workspace
from deploy.stages.finetuning import tuned
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run, run_all
from deploy.stages.stage_runners import Runner, engine_runner, in_batches
from deploy.terminal.progress import Progress
from smpq.methods import DEFAULT_METHOD
from smpq.problem.budget import Budget


def optimize(
    model: nn.Module,
    calibration: Iterable[Any],
    evaluation: Iterable[Any],
    metric: Metric | None = None,
    budget: str | None = None,
    target: str = "ort-cpu",
    out: str | Path | None = None,
    *,
    selection: Iterable[Any] | None = None,
    method: str = DEFAULT_METHOD,
    verbose: bool = True,
    **settings: Any,
) -> Result:
    """Return the best mixed-precision engine of a model within a budget, with its proof.

    `calibration`, `evaluation` and `selection` give batches: tensors, `(inputs, target)`, dicts of the arguments of
    `forward`, or a DataLoader of these. `metric(output, target)` returns `[n]`, one value per sample, higher is better;
    without one the divergence from the model's own output is what counts. `budget` is that of `smpq run`: `drop=0.5`
    by default, `kl=0.02` without a metric. `out` is the run directory: the same call goes on where it stopped, and the
    commands that need no task work on it. `settings` are those of `smpq run` (`deploy.run.settings.Settings`):
    `formats`, `effort`, `samples`, `seed`, `batch` and so on. UserError, with a message that says what to do, for wrong
    input; a budget that is not met is a result whose `met` is False.
    """
    text = budget or ("drop=0.5" if metric is not None else "kl=0.02")
    loss = Budget.from_text(text).loss
    if metric is None and loss is not None and loss.cost != "kl":
        raise UserError(f"{text} needs a metric(output, target): give one, or a budget on kl")
    known: dict[str, Any] = {
        "name": IN_MEMORY,
        "model": model,
        "calibration": calibration,
        "evaluation": evaluation,
        "metric": metric,
    }
    task = TaskInMemory(**known) if selection is None else TaskWithSelection(selection, **known)
    try:
        asked = Settings(task=IN_MEMORY, target=target, **settings)
    except TypeError as error:
        raise UserError(f"{error}: the settings are {', '.join(Settings.__struct_fields__)}") from error
    progress = Progress(Console(file=sys.stderr, quiet=not verbose))
    path = Path(out) if out is not None else usual_directory(asked)
    with held_in_memory(task):
        report = run_all(path, asked, text, progress, method=method)
        with open_run(path, Progress(), asked) as workspace:
            module, engine = _callables(workspace)
    note = engine if isinstance(engine, str) else None
    called = None if isinstance(engine, str) else FakeQuantized(engine)
    return Result(path, report, FakeQuantized(module), called, note)


def _callables(workspace: Workspace) -> tuple[Runner, Runner | str]:
    """Return how the fake-quantised model and the engine compute a batch. They keep nothing of the run, whose lock ends
    with it.
    """
    policy, traced, backend = read_policy(workspace), workspace.traced, workspace.backend
    fine_tuned = tuned(workspace, policy)
    simulated = traced if fine_tuned is None else fine_tuned.traced
    edits = workspace.fake_quantizer.edits(workspace.plan(policy)) if fine_tuned is None else fine_tuned.edits()
    module = in_batches(
        traced, lambda inputs: simulated.run(inputs, edits), None if traced.dynamic_batch else len(traced.example[0])
    )
    engines = {sm: workspace.run.file(name) for sm, name in backend.names.engines.items()}
    opened = backend.open(engines, traced.inputs, workspace.settings.batch, torch.get_num_threads())
    return module, opened if isinstance(opened, str) else engine_runner(traced, opened)
