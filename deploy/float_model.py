"""From the user's module to the traced float model that everything is made of, and the proof that it is the same."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.data import check_finite, per_sample
from calib.errors import UserError
from calib.faithful import UnfaithfulError, check_faithful
from calib.fold import Folded, trace_folded
from calib.graph import TracedModel
from calib.task import Batch, Task
from deploy.progress import Progress
from deploy.run import Settings
from deploy.targets.target import Target
from smpq.value import divergence


def trace_float_model(
    model: nn.Module, batches: Sequence[Batch], settings: Settings, target: Target, progress: Progress
) -> tuple[TracedModel, tuple[Folded, ...]]:
    """Return the trace of `model`, BatchNorm folded, which computes what the module itself does; see `check_faithful`.

    1. The batch is free where the trace holds for one sample, the run's batch, and every size that calibration has.
    2. Otherwise it is fixed, which is possible where calibration has batches of one size and the engine's is the same.

    Raises UserError when neither can be.
    """
    counts = {len(batch.inputs[0]) for batch in batches}
    sizes = {1, settings.batch, *counts}
    example = _example(max(batches, key=lambda batch: len(batch.inputs[0])), 2)
    reason: str | None = None
    try:
        traced, folded = trace_folded(model, example, sizes)
        if traced.dynamic_batch:
            check_faithful(model, traced, batches, sizes)
            return traced, folded
    except UnfaithfulError as error:
        reason = str(error)
    except UserError as error:
        # a model for one size only may not run with the two samples of the example
        if counts == {2} or len(counts) > 1:
            raise
        reason = str(error)
    (count, *others) = sorted(counts)
    fits = not others and (count == settings.batch or target.lowering == "simulate")
    if not fits:
        raise UserError(reason or _only_fixed(sorted(counts), settings.batch))
    traced, folded = trace_folded(model, _example(batches[0], count), free=False)
    check_faithful(model, traced, batches)
    if reason is not None:
        progress.warn(f"the engine takes batches of {count} only ({reason})")
    return traced, folded


def try_task(task: Task, traced: TracedModel, batches: Sequence[Batch], value: str) -> None:
    """Use what the search and the verification will call once, so that a mistake shows before hours of work and not after."""
    batch = batches[0]
    output, count = traced.run(batch.inputs), len(batch.inputs[0])
    for tensor in pytree.tree_leaves(output):
        if isinstance(tensor, Tensor):
            check_finite(tensor, "the model's output on calibration batch 0")
    if value == "loss":
        per_sample(task.loss, (output, batch.target), count, "loss")
    if value == "kl":
        per_sample(getattr(task, "divergence", divergence), (output, output), count, "divergence")
    per_sample(task.metric, (output, batch.target), count, "metric")


def _example(batch: Batch, count: int) -> tuple[Tensor, ...]:
    """Return the first samples of a batch, repeated where it has fewer: one sample would make the batch dimension a constant."""
    samples = tuple(tensor[:count] for tensor in batch.inputs)
    return tuple(tensor.repeat(-(-count // len(tensor)), *[1] * (tensor.dim() - 1))[:count] for tensor in samples)


def _only_fixed(counts: Sequence[int], batch: int) -> str:
    sizes = ", ".join(map(str, counts))
    advice = f"write --batch {sizes}" if len(counts) == 1 else "let calibration() give batches of one size, and give it with --batch"
    return (
        f"the model can only be traced for one number of samples, calibration() has batches of {sizes}, and the engine is asked to take "
        f"{batch}: {advice}, or take the batch size from x.shape[0] in forward()"
    )
