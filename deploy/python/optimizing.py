"""From a model and data in memory to an engine: the same run as that of `smpq run`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from calib.data import training_batches
from calib.declared import declared_fields
from calib.errors import UserError
from calib.tasks import IN_MEMORY, held_in_memory
from deploy.python.argument_names import in_words_of_arguments
from deploy.python.result import Computed, Result
from deploy.python.task import Groups, Metric, Records, SetMetric, TaskInMemory, Training
from deploy.python.undisturbed import undisturbed
from deploy.run.settings import Settings, usual_directory
from deploy.stages.policies import read_policy
from deploy.stages.run_all import check_job, open_run, run_stages
from deploy.stages.scoring import check_method
from deploy.stages.stage_runners import built_engine_runner, fake_quant_runner
from deploy.stages.tuning import Tuning, tuning_for
from deploy.terminal.patience import Patience
from deploy.terminal.progress import Progress
from smpq.methods import DEFAULT_METHOD
from smpq.problem.budget import Budget
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.settings import FineTuneSettings
from smpq.value.workers.resources import Resources

_HERE = Resources(workers=1)
"""Other processes would run the caller's script again where it does not guard its main part."""
_NOT_ASKED = ("task", "target")
"""Settings that are given in another way: the task by the model and its batches."""


def optimize(
    model: nn.Module,
    calibration: Iterable[Any],
    evaluation: Iterable[Any],
    metric: Metric | None = None,
    budget: str | None = None,
    target: str = "ort-cpu",
    out: str | Path | None = None,
    *,
    records: Records | None = None,
    metric_of: Callable[[Sequence[Any]], Any] | None = None,
    groups: Groups | None = None,
    selection: Iterable[Any] | None = None,
    training: Training | None = None,
    loss: Metric | None = None,
    divergence: Metric | None = None,
    metric_point: float | None = None,
    finetune: float | FineTuneSettings | None = None,
    reconstruct: str | ReconstructionSettings | None = None,
    method: str = DEFAULT_METHOD,
    seconds: float | None = None,
    verbose: bool = True,
    **settings: Any,
) -> Result:
    """Return the best mixed-precision engine of a model within a budget, with its proof.

    `calibration`, `evaluation` and `selection` give batches: tensors, `(inputs, target)`, dicts of the arguments of
    `forward`, or a DataLoader of these. `metric(output, target)` returns `[n]`, one value per sample, higher is better;
    without one the divergence from the model's own output is what counts. A figure of all samples together (AUC,
    average precision) is said by `records(output, target)`, one small object per sample, and `metric_of(records)` in
    place of `metric`; `groups(target)` names what samples belong together (`calib.task.SetTask`).
    `divergence(output, float_output)` returns `[n]`, how far outputs are from those of the model itself, where these
    are no scores of classes (`smpq.value.divergence.divergence`). `metric_point` is how much of the metric `drop=1` is:
    by default 0.01 where the metric of the float model lies between 0 and 1, else 1.

    `finetune` is how many epochs the weights are trained in their formats, or how (`smpq.training.settings`); it needs
    `training`: batches, none of them in `calibration`, or a function of the epoch that gives them. The float model
    teaches, and so does `loss(output, target)` where it is given: `[n]`, lower is better, with a gradient.
    `reconstruct` needs calibration data alone: "mse", "brecq", "fima-q", or how (`smpq.reconstruction.settings`).

    `budget` is that of `smpq run`: `drop=0.5` by default, `kl=0.02` without a metric. `out` is the run directory: the
    same call goes on where it stopped, and the commands that need no task work on it. `seconds` is after how long the
    search ends with the best that it has. `settings` are those of `smpq run` (`deploy.run.settings.Settings`):
    `formats`, `effort`, `samples`, `seed`, `batch` and so on. UserError, with a message that says what to do, for wrong
    input; a budget that is not met is a result whose `met` is False.

    The modes of torch that the caller has switched on (`no_grad`, `inference_mode`, `autocast`) change nothing. Random
    numbers and the model's mode, training or not, are afterwards as they were.
    """
    with undisturbed(model), in_words_of_arguments():
        whole = _whole(metric, records, metric_of, groups)
        judged = metric is not None or whole is not None
        text = budget if budget is not None else "drop=0.5" if judged else "kl=0.02"
        asked = _settings(target, settings)
        wanted = Budget.from_text(text, asked.batch)
        limit = wanted.loss
        if not judged and limit is not None and limit.cost != "kl":
            raise UserError(f"{text} needs a metric(output, target): give one, or a budget on kl")
        tuning = _tuning(method, finetune, reconstruct, labels=loss is not None)
        task = TaskInMemory(
            IN_MEMORY,
            model,
            calibration,
            evaluation,
            metric,
            selection,
            training,
            loss,
            whole,
            divergence,
            metric_point,
        )
        trained = None
        if isinstance(tuning, FineTuneSettings):
            if training is None:
                raise UserError("fine-tuning needs training=: batches that calibration does not hold, or finetune=0")
            trained = next(training_batches(task, 0))  # whether they can be used is told before anything begins
        progress = Progress(Console(file=sys.stderr, quiet=not verbose), Patience(seconds))
        path = Path(out) if out is not None else usual_directory(asked)
        check_method(method, wanted)
        if trained is not None and task.is_in_calibration(trained):
            progress.warn(
                "all samples of the first training batch are in calibration, which is to judge what is trained: give "
                "training= other samples"
            )
        check = partial(check_job, budget=wanted, tuning=tuning, method=method)
        with held_in_memory(task), open_run(path, progress, asked, _HERE, check=check) as workspace:
            report = run_stages(workspace, wanted, tuning, method)
            called = task.input_names, workspace.traced.sizes
            module = Computed(fake_quant_runner(workspace, read_policy(workspace)), *called)
            engine = built_engine_runner(workspace, torch.get_num_threads())
        note = engine if isinstance(engine, str) else None
        return Result(path, report, module, None if isinstance(engine, str) else Computed(engine, *called), note)


def _settings(target: str, given: Mapping[str, Any]) -> Settings:
    """Return the settings of the run; UserError for what is none, with its name where it is that of an option."""
    fields = {name: each for name, each in declared_fields(Settings).items() if name not in _NOT_ASKED}
    options = {each.option_name: name for name, each in fields.items()}
    for name in given.keys() - fields.keys():
        option = name.replace("-", "_")
        if option in options:
            raise UserError(f"optimize has no argument {name}: give the option of that name as {options[option]}=")
        raise UserError(f"optimize has no argument {name}: the settings are {', '.join(fields)}")
    several = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    asked = Settings(task=IN_MEMORY, target=target, **{**given, **several})
    if asked.data_free:
        raise UserError("optimize is given samples: data_free is for smpq run, whose task need not have any")
    return asked


def _whole(
    metric: Metric | None,
    records: Records | None,
    metric_of: Callable[[Sequence[Any]], Any] | None,
    groups: Groups | None,
) -> SetMetric | None:
    """Return the metric of all samples together, None where there is none. UserError for half of one, or for two."""
    if records is None and metric_of is None and groups is None:
        return None
    if records is None or metric_of is None:
        raise UserError("a metric of all samples together needs records(output, target) and metric_of(records)")
    if metric is not None:
        raise UserError("metric is one value per sample, records and metric_of are a figure of all: give one of them")
    return SetMetric(records, metric_of, groups)


def _tuning(
    method: str,
    finetune: float | FineTuneSettings | None,
    reconstruct: str | ReconstructionSettings | None,
    *,
    labels: bool,
) -> Tuning | None:
    """Return how to tune the weights. UserError where a loss is to be learnt from that there is not."""
    if not isinstance(finetune, FineTuneSettings):
        found = tuning_for(method, finetune, reconstruct)
        return replace(found, labels=0.0) if isinstance(found, FineTuneSettings) and not labels else found
    if reconstruct is not None:
        raise UserError("the weights are fine-tuned or reconstructed, not both: give one of finetune and reconstruct")
    if finetune.labels and not labels:
        raise UserError("FineTuneSettings gives labels a weight, which needs loss=: give one, or labels=0")
    return finetune
