"""Reconstruction as a stage of a run: block by block the policy's weights are brought back to what the float network
gives, without labels, and every later stage uses them.
"""

from __future__ import annotations

from collections.abc import Callable

from deploy.files.engine import FinetuneFile
from deploy.run.subject import trains_on
from deploy.run.workspace import Workspace
from deploy.stages.finetuning import for_run, keep_weights, subject_of
from smpq.problem.policy import Policy
from smpq.reconstruction.blocks import find_blocks
from smpq.reconstruction.partial import PartialFile
from smpq.reconstruction.reconstruct import BlockProgress
from smpq.reconstruction.reconstruct import reconstruct as rebuild
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.lsq import check_learned


def reconstruct(workspace: Workspace, policy: Policy, settings: ReconstructionSettings) -> FinetuneFile:
    """Reconstruct the policy on the calibration data. Writes `finetuned.safetensors` and `finetune.json`; until it ends
    `reconstruction.safetensors` holds the blocks that are done, and the same call goes on from there.

    The run's settings say by what a model is judged on the calibration data (`--value`), and the seed. UserError when
    the policy has no integers.
    """
    settings = for_run(settings, workspace)
    partial = workspace.run.file(PartialFile.NAME)
    subject = subject_of(workspace, policy)
    with workspace.progress.bar("reconstruct", _iterations(workspace, settings.iterations)) as advance:
        found = rebuild(
            subject,
            workspace.batches,
            settings,
            partial,
            _reporter(workspace, advance),
            trains_on(workspace),
            workspace.resources.memory_limit_mb,
            workspace.fake_quantizer.calibration.of,
        )
    if found.after.value < found.before.value:
        workspace.progress.warn(
            f"on the calibration data the reconstructed policy has a value of {found.after.value:.4g}, "
            f"{found.before.value:.4g} before: use more --iterations, or delete "
            f"{partial.parent / 'finetuned.safetensors'} to go back"
        )
    record = keep_weights(workspace, found)
    partial.unlink(missing_ok=True)
    return record


def check_reconstructable(workspace: Workspace) -> None:
    """Raise UserError where a format has numbers whose steps cannot be learned: before hours of search, not after."""
    check_learned(workspace.space.offered)


def _iterations(workspace: Workspace, iterations: int) -> int:
    return iterations * len(find_blocks(workspace.traced, workspace.space.units))


def _reporter(workspace: Workspace, advance: Callable[[], None]) -> Callable[[BlockProgress], None]:
    def report(progress: BlockProgress) -> None:
        if progress.cost is None:
            advance()
            return
        before, after = progress.cost
        end = f" to {after:.4g}" if after != before else ", back where it began"
        workspace.progress.say(f"block {progress.block + 1} of {progress.blocks}: error {before:.4g}{end}")

    return report
