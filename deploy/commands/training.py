"""The commands that train: train-supernet, finetune, reconstruct."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from calib.declared import Declared, OneOf
from deploy.commands.declared_options import declared_options, settings_from_options
from deploy.commands.options import Result, Shared, command, printed, resource_options, run_argument
from deploy.run.settings import Settings
from smpq.choices import VALUES
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.supernet.settings import GameSettings, SupernetSettings
from smpq.training.settings import FineTuneSettings

_STEP_SIZES = 10
"""The learning rate of weights is so many times that of step sizes."""


@dataclass(frozen=True)
class _Own:
    """What these commands take besides settings."""

    contribution: Annotated[str, Declared("what operations contribute to", OneOf(VALUES), "--contribution")] = "metric"


@command("train-supernet")
@declared_options(Settings)
@declared_options(Shared, "out")
@declared_options(SupernetSettings)
@declared_options(_Own, "contribution")
@resource_options
@printed
def train_supernet(contribution: str, out: Path, progress: Any, resources: Any, **options: Any) -> Result:
    """Train a network that holds all formats of every layer, and score them: supernet.safetensors, supernet.json.

    The paper's way; smpq run with a method that uses a supernet (smpq methods) goes on from there. The task needs
    training data. The same command on an unfinished training goes on after its last epoch.
    """
    from deploy.stages.run_all import open_run
    from deploy.stages.supernet import train_supernet as supernet_stage
    from smpq.supernet.files import SupernetFile

    supernet = settings_from_options(SupernetSettings, options, game=GameSettings((contribution,)))
    settings = settings_from_options(Settings, options)
    with open_run(out, progress, settings, resources) as workspace:
        _, state = supernet_stage(workspace, supernet)
    found = state.contributions[contribution]
    line = (
        f"supernet: {out / 'supernet.safetensors'} ({found.updates} estimates, {len(found.walks)} walks, "
        f"{found.truncated} of them cut)"
    )
    return workspace.run.read(SupernetFile), [line], 0


@command("finetune")
@run_argument
@declared_options(FineTuneSettings)
@resource_options
@printed
def finetune(
    run: Path, task: str | None, learning_rate: float, progress: Any, resources: Any, **options: Any
) -> Result:
    """Train the weights of policy.json in their formats: finetuned.safetensors, finetune.json. The task needs training
    data.

    From then on export, build, measure, verify and report use these weights, until policy.json is changed. Delete
    finetuned.safetensors to go back.
    """
    from deploy.stages.cheapest import judge_tuned
    from deploy.stages.finetuning import finetune as finetune_stage
    from deploy.stages.policies import read_policy
    from deploy.stages.run_all import open_run

    settings = settings_from_options(
        FineTuneSettings, options, learning_rate=learning_rate, step_learning_rate=learning_rate / _STEP_SIZES
    )
    with open_run(run, progress, resources=resources, task=task) as workspace:
        policy = read_policy(workspace)
        record = finetune_stage(workspace, policy, settings)
        judge_tuned(workspace, policy)
    return record, [_line("fine-tuned", run, record, workspace.task.metric_name)], 0


@command("reconstruct")
@run_argument
@declared_options(ReconstructionSettings)
@resource_options
@printed
def reconstruct(run: Path, task: str | None, progress: Any, resources: Any, **options: Any) -> Result:
    """Bring the weights of policy.json back to what the float network gives, block by block: finetuned.safetensors.

    Needs calibration data, no labels and no training data. Goes on behind the last finished block when it was stopped.
    From then on export, build, measure, verify and report use these weights, until policy.json is changed. Delete
    finetuned.safetensors to go back.
    """
    from deploy.stages.cheapest import judge_tuned
    from deploy.stages.policies import read_policy
    from deploy.stages.reconstructing import reconstruct as reconstruct_stage
    from deploy.stages.run_all import open_run

    settings = settings_from_options(ReconstructionSettings, options)
    with open_run(run, progress, resources=resources, task=task) as workspace:
        policy = read_policy(workspace)
        record = reconstruct_stage(workspace, policy, settings)
        judge_tuned(workspace, policy)
    return record, [_line("reconstructed", run, record, workspace.task.metric_name)], 0


def _line(done: str, run: Path, record: Any, metric: str) -> str:
    before, after = record.before, record.after
    return (
        f"{done}: {run / 'finetuned.safetensors'} (on calibration data: value {before.value:.6g} to "
        f"{after.value:.6g}, {metric} {before.metric:.4f} to {after.metric:.4f})"
    )
