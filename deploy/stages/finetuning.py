"""Fine-tuning as a stage of a run: the policy's weights are trained once, and every later stage uses them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from calib.batches import training_content
from calib.data import training_batches
from calib.errors import UserError
from calib.files.storage import plain
from calib.network.execution import Edits
from calib.network.graph import TracedModel
from deploy.files.engine import FinetuneFile
from deploy.lowering.export import export_float
from deploy.lowering.onnx_files import sha256
from deploy.run.data_free import refuse_data_free
from deploy.run.directory import Run
from deploy.run.subject import subject, trains_on
from deploy.run.workspace import Workspace
from smpq.problem.policy import Policy
from smpq.quantized.plan import QuantPlan
from smpq.quantized.quantize import FakeQuantizer
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.finetune import Subject, each_tenth
from smpq.training.finetune import finetune as train
from smpq.training.finetuned import FineTunedFile, FineTunedWeights, policy_of_file, record_of_file
from smpq.training.lsq import check_learned
from smpq.training.settings import FineTuneSettings

FINE_TUNED = FineTunedFile.NAME
TRAINING_DATA = "training_data"
MODEL = "model.finetuned.onnx"
Settings = TypeVar("Settings", FineTuneSettings, ReconstructionSettings)


@dataclass(frozen=True)
class FineTunedModel:
    """The fine-tuned weights of a run, ready to be simulated and exported; the float model with them is only the source
    of the export.
    """

    workspace: Workspace
    policy: Policy
    weights: FineTunedWeights

    @cached_property
    def traced(self) -> TracedModel:
        """The folded model with the fine-tuned float parameters."""
        return self.weights.traced(self.workspace.traced)

    @cached_property
    def fake_quantizer(self) -> FakeQuantizer:
        """Simulates the fine-tuned policy."""
        original = self.workspace.fake_quantizer
        return FakeQuantizer(
            self.traced, original.units, self.weights.calibration(original.calibration), original.rules
        )

    @cached_property
    def plan(self) -> QuantPlan:
        """The plan of the policy, with the fine-tuned integers and grids."""
        return self.fake_quantizer.plan(self.policy.by_unit(self.workspace.space.groups), self.policy.float_joins)

    def edits(self) -> Edits:
        """What simulates the policy on `traced`."""
        return self.fake_quantizer.edits(self.plan)

    def export_source(self) -> Path:
        """Write `model.finetuned.onnx`, the float model that the quantisers are put into."""
        path = self.workspace.run.file(MODEL)
        with self.workspace.progress.step("export to ONNX"):
            export_float(self.traced, self.workspace.space.units, path, self.workspace.fingerprint)
        return path


def finetune(workspace: Workspace, policy: Policy, settings: FineTuneSettings) -> FinetuneFile:
    """Fine-tune the policy on the task's training data. Writes `finetuned.safetensors` and `finetune.json`, or nothing.

    The run's settings say by what a model is judged on the calibration data (`--value`), and the seed. UserError when
    the policy quantises nothing.
    """
    refuse_data_free(workspace.settings, "fine-tuning")
    subject = subject_of(workspace, policy)
    settings = for_run(settings, workspace)
    with workspace.progress.step("fine-tune"):
        report = each_tenth(workspace.progress.say, "fine-tuning")
        found = train(subject, workspace.batches, settings, report, trains_on(workspace))
    found = replace(found, settings={**found.settings, **training_data(workspace)})
    if found.kept == "start":
        workspace.progress.warn(
            "fine-tuning did not improve the policy on the calibration data, and changed nothing: "
            "try a smaller learning rate (--learning-rate) or more epochs"
        )
    elif found.after.value < found.before.value:
        workspace.progress.warn(
            f"on the calibration data the fine-tuned policy has a value of {found.after.value:.4g}, "
            f"{found.before.value:.4g} before. That is "
            "no verdict when the float model was trained on these data; smpq verify tells. Otherwise use --keep better"
        )
    return keep_weights(workspace, found)


def training_data(workspace: Workspace) -> dict[str, str]:
    """Return a hash of the first batch that is trained on, by its name among the recorded settings."""
    return {TRAINING_DATA: training_content(workspace.task)}


def subject_of(workspace: Workspace, policy: Policy) -> Subject:
    """Return what of a run is trained. UserError when the policy quantises nothing."""
    plan = workspace.plan(policy)
    if not plan.weights and not plan.tensors:
        raise UserError(
            "the policy in policy.json keeps every layer in floating point: "
            "there is nothing to fine-tune or reconstruct"
        )
    return subject(workspace, policy, plan)


def keep_weights(workspace: Workspace, found: FineTunedWeights) -> FinetuneFile:
    """Write `finetuned.safetensors` and `finetune.json`."""
    found.save(workspace.run.file(FINE_TUNED))
    return record_weights(workspace)


def record_weights(workspace: Workspace) -> FinetuneFile:
    """Write `finetune.json` about the weights that are there: a kill may have come between the two files."""
    path = workspace.run.file(FINE_TUNED)
    record = _record(record_of_file(path), sha256(path))
    workspace.run.write(record)
    return record


def check_trainable(workspace: Workspace) -> None:
    """Raise UserError unless all formats can be trained, and the task has training data whose first batch is as it
    should be: before hours of search, not after.
    """
    check_learned(workspace.space.offered)
    refuse_data_free(workspace.settings, "fine-tuning")
    next(training_batches(workspace.task, 0))


def discard_other(workspace: Workspace, policy: Policy) -> None:
    """Remove fine-tuned weights of another policy, and say so: they are about to be made again."""
    path = workspace.run.file(FINE_TUNED)
    if path.is_file() and policy_of_file(path) != policy.key():
        workspace.progress.say(f"{path} is of another policy: removed, it will be made again")
        path.unlink()


def tuned(workspace: Workspace, policy: Policy) -> FineTunedModel | None:
    """Return the fine-tuned weights of the run; None when it was not fine-tuned.

    UserError when they are of another policy than this one, or of another model or other data.
    """
    path = workspace.run.file(FINE_TUNED)
    if not path.is_file():
        return None
    _check_policy(path, policy)
    weights = FineTunedWeights.load(path)
    if weights.fingerprint != workspace.fingerprint:
        raise UserError(
            f"{path} was made from another model or other calibration data: use smpq finetune again, or delete it"
        )
    weights.check_fits(workspace.traced, workspace.space.units, path)
    return FineTunedModel(workspace, policy, weights)


def version_of(run: Run, policy: Policy) -> str:
    """Return what the files of later stages were made for: the policy, and the fine-tuned weights if there are any.

    UserError when these are of another policy.
    """
    path = run.file(FINE_TUNED)
    if not path.is_file():
        return policy.key()
    _check_policy(path, policy)
    return f"{policy.key()} fine-tuned {sha256(path)}"


def policy_text(run: Run) -> str:
    """Return what messages call a run's policy, with its fine-tuned weights where it has any."""
    return "the policy in policy.json" + (" and its fine-tuning" if run.has(FINE_TUNED) else "")


def trained_by(run: Run) -> str | None:
    """Return the name of the method that trained the run's policy together with its weights; None where none did."""
    path = run.file(FINE_TUNED)
    method = record_of_file(path).settings.get("method") if path.is_file() else None
    return str(method) if method is not None else None


def read_record(run: Run) -> FinetuneFile | None:
    """Return `finetune.json` when the run was fine-tuned, else None."""
    if not run.has(FINE_TUNED):
        return None
    record = run.read(FinetuneFile)
    if record.sha256 != sha256(run.file(FINE_TUNED)):
        raise UserError(f"{run.file(record.NAME)} is not about {run.file(FINE_TUNED)}: use smpq finetune again")
    if plain(record) != plain(_record(record_of_file(run.file(FINE_TUNED)), record.sha256)):
        raise UserError(
            f"{run.file(record.NAME)} does not say what {run.file(FINE_TUNED)} says: use smpq finetune again"
        )
    return record


def for_run(settings: Settings, workspace: Workspace) -> Settings:
    """Return the settings with what the run's own say."""
    return replace(settings, value=workspace.settings.value, seed=workspace.settings.seed)


def _check_policy(path: Path, policy: Policy) -> None:
    if policy_of_file(path) != policy.key():
        raise UserError(
            f"{path} was fine-tuned for another policy than the one in policy.json: use smpq finetune again, or delete "
            f"{path.name} "
            "to go on without fine-tuning"
        )


def _record(found: FineTunedFile, digest: str) -> FinetuneFile:
    values = {
        "schema": FinetuneFile.VERSION,
        "policy": found.policy,
        "sha256": digest,
        "kept": found.kept,
        "before": plain(found.before),
        "after": plain(found.after),
        "samples": "calibration",
        "seconds": found.seconds,
        "settings": dict(found.settings),
        "history": plain(found.history),
    }
    return msgspec.convert(values, FinetuneFile)
