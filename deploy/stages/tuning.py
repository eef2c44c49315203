"""What happens to the weights of a policy that was chosen: they are fine-tuned, or reconstructed, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from calib.errors import UserError
from deploy.files.engine import FinetuneFile
from deploy.run.workspace import Workspace
from deploy.stages import finetuning, reconstructing
from deploy.stages.finetuning import FINE_TUNED
from smpq.methods import method_from_name
from smpq.problem.policy import Policy
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.finetuned import FineTunedWeights, policy_of_file
from smpq.training.settings import FineTuneSettings

Tuning = FineTuneSettings | ReconstructionSettings


@dataclass(frozen=True)
class _Way:
    """`check` raises UserError where it cannot be done, `tune` does it, `recorded` is what the weights say of how."""

    check: Callable[[Workspace], None]
    tune: Callable[[Workspace, Policy, Any], FinetuneFile]
    recorded: Callable[[Any, Workspace], dict[str, Any]]


_WAYS = {
    FineTuneSettings: _Way(
        finetuning.check_trainable,
        finetuning.finetune,
        lambda how, run: {**asdict(finetuning.for_run(how, run)), **finetuning.training_data(run)},
    ),
    ReconstructionSettings: _Way(
        reconstructing.check_reconstructable,
        reconstructing.reconstruct,
        lambda how, run: {"reconstruction": how.loss, **asdict(finetuning.for_run(how, run))},
    ),
}


def tuning_for(
    method: str, epochs: float | None, reconstruct: str | ReconstructionSettings | None = None
) -> Tuning | None:
    """Return how to tune: so many epochs of fine-tuning, or a reconstruction by a loss; None: not at all, or as usual
    where the method wants it. UserError for both. A method that trains does so for these epochs, or as long as usual;
    UserError for none, and for a reconstruction.
    """
    declared = method_from_name(method)
    if declared.epochs is not None:
        if reconstruct is not None or epochs == 0:
            raise UserError(
                f"--method {method} trains the weights itself: leave out --reconstruct, and give --finetune the epochs "
                "of that training, or leave it out too"
            )
        return FineTuneSettings(epochs=float(declared.epochs if epochs is None else epochs))
    if reconstruct is not None:
        if epochs:
            raise UserError(
                "the weights are fine-tuned or reconstructed, not both: give one of --finetune and --reconstruct"
            )
        return reconstruct if isinstance(reconstruct, ReconstructionSettings) else ReconstructionSettings(reconstruct)
    usual = FineTuneSettings.epochs if declared.finetuned else 0.0
    wanted = usual if epochs is None else epochs
    return FineTuneSettings(epochs=wanted) if wanted else None


def check_tunable(workspace: Workspace, how: Tuning) -> None:
    """Raise UserError where the run cannot do that: before hours of search, not after."""
    _WAYS[type(how)].check(workspace)


def tune_unless_done(workspace: Workspace, policy: Policy, how: Tuning) -> None:
    """Tune the policy unless the run holds it, tuned in the same way."""
    way, path = _WAYS[type(how)], workspace.run.file(FINE_TUNED)
    if workspace.run.has(FINE_TUNED) and policy_of_file(path) == policy.key():
        found = FineTunedWeights.load(path)
        if found.fingerprint == workspace.fingerprint and dict(found.settings) == way.recorded(how, workspace):
            finetuning.record_weights(workspace)
            workspace.progress.say(f"fine-tuned already: {path}")
            return
    way.tune(workspace, policy, how)
