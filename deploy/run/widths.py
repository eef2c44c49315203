"""Weights that are reconstructed at every width before the search, and kept in the run, one file a width."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from deploy.run.subject import subject, trains_on
from smpq.quantized.quantize import FakeQuantizer
from smpq.reconstruction.blocks import find_blocks
from smpq.reconstruction.reconstruct import BlockProgress, reconstruct
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.reconstruction.widths import RoundedWeights, Width, widths_of
from smpq.training.finetuned import FineTunedWeights

if TYPE_CHECKING:
    from deploy.run.workspace import Workspace


def reconstructed_weights(workspace: Workspace, quantizer: FakeQuantizer, iterations: int) -> RoundedWeights:
    """Return the weights of all widths (`widths_of`), each reconstructed in the network that has it everywhere, with so
    many iterations a block.

    Biases and the steps of activations stay as they are, since every policy shares them. A width that the run holds
    is read; one that was interrupted goes on behind its last block.
    """
    found: RoundedWeights = {}
    for width in widths_of(workspace.space):
        found |= width.rounded(workspace.space, _weights(workspace, quantizer, width, iterations).weights)
    return found


def _weights(workspace: Workspace, quantizer: FakeQuantizer, width: Width, iterations: int) -> FineTunedWeights:
    settings = ReconstructionSettings(
        iterations=iterations,
        activation_rate=0.0,
        bias_rate=0.0,
        value=workspace.settings.value,
        seed=workspace.settings.seed,
    )
    path = workspace.run.file(f"width-{width.key}.safetensors")
    key = width.policy.key()
    known = FineTunedWeights.load(path) if path.is_file() else None
    wanted = key, workspace.fingerprint, {"reconstruction": settings.loss, **asdict(settings)}
    if known is not None and (known.policy, known.fingerprint, dict(known.settings)) == wanted:
        return known
    plan = quantizer.plan(width.policy.by_unit(workspace.space.groups))
    partial = path.with_suffix(".partial")
    blocks = len(find_blocks(workspace.traced, workspace.space.units))
    with workspace.progress.bar(f"reconstruct {width.key}", iterations * blocks) as advance:

        def report(progress: BlockProgress) -> None:
            if progress.cost is None:
                advance()

        found = reconstruct(
            subject(workspace, width.policy, plan),
            workspace.batches,
            settings,
            partial,
            report,
            trains_on(workspace),
            workspace.resources.memory_limit_mb,
        )
    found.save(path)
    partial.unlink(missing_ok=True)
    return found
