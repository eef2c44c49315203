"""From the user's module to the traced float model that everything is made of, and the proof that it is the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.accepted import check_tensor
from calib.batches import Batches
from calib.data import check_finite, per_sample
from calib.errors import UserError
from calib.network.agreement import Agreement
from calib.network.faithful import UnfaithfulError, check_faithful, run_eager
from calib.network.fold import Folded, trace_folded
from calib.network.free_axes import input_names
from calib.network.graph import TracedModel
from calib.network.modules import copy_model
from calib.sizes import InputSizes, resized, shapes_of_one, sizes_from_text, sizes_of
from calib.task import Batch, Task
from calib.threads import computing_with
from deploy.run.settings import Settings
from deploy.targets.target import Target
from deploy.terminal.progress import Progress
from smpq.value.divergence import TaskDivergence
from smpq.value.loss import stated_point
from smpq.value.metric import collected, sample_metric
from smpq.value.resampling import UndefinedError

_CHANNELS = 2
_ABOUT = 1e-3
"""So far from 1 may the sum of probabilities be."""


def _traced(*arguments: Any, **options: Any) -> tuple[TracedModel, tuple[Folded, ...]]:
    """Trace with one thread: what a trace works out once and for all is then the same on a busy machine."""
    with computing_with(1):
        return trace_folded(*arguments, **options)


def trace_float_model(
    model: nn.Module, batches: Batches, settings: Settings, target: Target, progress: Progress
) -> tuple[TracedModel, tuple[Folded, ...]]:
    """Return the trace of `model`, BatchNorm folded, which computes what the module itself does; see `check_faithful`.

    1. The batch is free where the trace holds for one sample, the run's batch, and every size that calibration has.
    2. Otherwise it is fixed, which is possible where calibration has batches of one size and the engine's is the same.
    3. Other axes are free where calibration has several sizes, or the settings state them (`calib.sizes`).

    Raises UserError when neither can be.
    """
    counts = set(batches.counts)
    stated = [sizes_from_text(text) for text in settings.shapes]
    names = input_names(model, len(batches[0].inputs))
    sizes = sizes_of(map(shapes_of_one, batches.shapes), names, stated, settings.batch)
    how = {"inputs": sizes, "attention": settings.attention}
    given = copy_model(model)  # running the model may change what it remembers in Python
    try:
        example = _example(batches[batches.counts.index(max(counts))], sizes, 2)
        traced, folded = _traced(given, example, {1, settings.batch, *counts}, **how)
    except UserError:
        _check_runs(model, batches[0])  # where it fails as well, that is the message
        if 2 in counts or len(counts) > 1:
            raise
        fixed = _traced(given, _example(batches[0], sizes), free=False, **how)
        if not _fits(counts, settings, target):
            raise UserError(_only_fixed(sorted(counts), settings.batch)) from None
        check_faithful(model, fixed[0], batches)
        return fixed
    if traced.dynamic_batch:
        try:
            check_faithful(model, traced, batches, {1, settings.batch, *counts})
        except UnfaithfulError as error:
            if error.samples in counts or not _fits(counts, settings, target):
                raise
            progress.warn(f"the engine takes batches of {min(counts)} only, because of other sizes: {error}")
        else:
            if traced.sizes.samples is not None:
                most = traced.sizes.samples
                progress.warn(
                    f"the engine holds for at most {most} samples at once: with more of them, forward() does something "
                    "else"
                )
            return traced, folded
    if not _fits(counts, settings, target):
        raise UserError(_only_fixed(sorted(counts), settings.batch))
    fixed = _traced(given, _example(batches[0], sizes), free=False, **how)
    check_faithful(model, fixed[0], batches)
    return fixed


def _fits(counts: Collection[int], settings: Settings, target: Target) -> bool:
    """Whether one fixed batch size would do: calibration has one size, and the engine's, where there is one, is the
    same.
    """
    return len(counts) == 1 and (not target.timed or settings.batch in counts)


def _check_runs(model: nn.Module, batch: Batch) -> None:
    try:
        output = run_eager(model, batch.inputs, f"calibration batch 0 ({len(batch.inputs[0])} samples)")
    except UserError as error:
        try:
            run_eager(model, [tensor[:1] for tensor in batch.inputs], "one sample")
        except UserError:
            raise error from None
        raise UserError(
            f"{error}. It runs with one sample: let calibration() and evaluation() give batches of one sample, and "
            "write --batch 1"
        ) from error
    for leaf in pytree.tree_leaves(output):
        if leaf is not None and not isinstance(leaf, (Tensor, bool, int, float, str)):  # which a trace can hold
            raise UserError(
                f"forward() returns a value of type {type(leaf).__name__}: an engine gives tensors only, so return "
                "those, or tuples, lists and dicts of them"
            )


def try_task(
    task: Task, traced: TracedModel, batch: Batch, value: str, judged: Batch | None, warn: Callable[[str], None]
) -> None:
    """Use what the search and the verification will call once, `batch` is the first of calibration, so that a mistake
    shows before hours of work and not after. `judged` is the batch for the metric, None where nothing will be verified.
    """
    output, count = traced.run(batch.inputs), len(batch.inputs[0])
    for tensor in pytree.tree_leaves(output):
        if isinstance(tensor, Tensor):
            check_tensor(tensor, "the model's output")
            check_finite(tensor, "the model's output on calibration batch 0")
    if count > 1 and _depends_on_others(traced, batch, output):
        warn(
            "what the model gives for a sample depends on the samples beside it, and the search cuts batches into "
            "parts: does the first axis of each input count the samples, as with batch_first=True?"
        )
    if value == "loss":
        per_sample(task.loss, (output, batch.target), count, "loss")
    if value == "kl":
        _try_divergence(TaskDivergence(task), output, batch)
        if not hasattr(task, "divergence") and _are_numbers(output, batch.target):
            warn(
                "the targets are numbers, and --value kl takes what the model gives for scores of classes: give the "
                "task a divergence(output, float_output), or use --value loss"
            )
    if value == "metric":
        sample_metric(task, "the value metric")
    if judged is None:
        return
    stated_point(task)
    judged_output = output if judged is batch else traced.run(judged.inputs)
    first, again = (_figure(task, judged_output, judged) for _ in range(2))
    if not math.isclose(first, again, rel_tol=1e-6, abs_tol=1e-9):
        raise UserError(
            f"{task.metric_name} of the same outputs and targets is {first:.6g}, and {again:.6g} the second time: let "
            "it depend on its arguments alone, with a seed of its own where it draws numbers"
        )


def _figure(task: Task, output: Any, batch: Batch) -> float:
    """Return the metric of one batch; zero where that leaves the figure of a set without a value."""
    found = collected(task)
    found.take(0, output, batch)
    try:
        return found.value
    except UndefinedError:
        return 0.0


def _depends_on_others(traced: TracedModel, batch: Batch, output: Any) -> bool:
    """Whether the first row of what has one for each sample is another one where all samples are the first."""
    count = len(batch.inputs[0])
    same = traced.run([tensor[:1].expand_as(tensor).contiguous() for tensor in batch.inputs])
    rows = [
        (one, two)
        for one, two in zip(pytree.tree_leaves(same), pytree.tree_leaves(output), strict=True)
        if isinstance(two, Tensor) and two.shape[:1] == one.shape[:1] == (count,)
    ]
    expected = Agreement([two for _, two in rows])
    return expected.difference([one[:1] for one, _ in rows], [two[:1] for _, two in rows]) is not None


def _try_divergence(function: TaskDivergence, output: Any, batch: Batch) -> None:
    """Raise UserError where a divergence cannot be computed, or is zero for outputs that differ: with it all policies
    would be alike.
    """
    count = len(batch.inputs[0])
    per_sample(function, (output, output, batch.target), count, "divergence")
    for change in (lambda tensor: tensor.roll(1, 0), _uneven):
        changed = pytree.tree_map(lambda leaf, change=change: change(leaf) if _is_float(leaf) else leaf, output)
        if bool((per_sample(function, (changed, output, batch.target), count, "divergence") != 0).any()):
            return
    raise UserError(
        "the divergence of outputs that differ is 0 for each sample, so that it could tell no policy from another: "
        "give the task a divergence(output, float_output) that sees what matters, or use --value loss"
    )


def _uneven(tensor: Tensor) -> Tensor:
    """Return a tensor of which each number is changed by more than the one before: scores that all grow alike are the
    same scores.
    """
    more = torch.linspace(1, 2, tensor.numel(), dtype=tensor.dtype, device=tensor.device).reshape(tensor.shape)
    return tensor + more * (tensor.abs().mean() + 1)


def _are_numbers(output: Any, target: Any) -> bool:
    """Whether targets are numbers like those of the output, of several channels,
    and neither probabilities of classes nor what the model itself gives.
    """
    if not _is_float(output) or not _is_float(target) or target.shape != output.shape or output.dim() < _CHANNELS:
        return False
    shares = bool((target >= 0).all()) and bool(((target.sum(1) - 1).abs() < _ABOUT).all())
    return output.shape[1] > 1 and not shares and not torch.allclose(output, target, atol=_ABOUT)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0


def _example(batch: Batch, sizes: InputSizes, count: int | None = None) -> tuple[Tensor, ...]:
    """Return the first samples of a batch, or all, in the usual sizes and in the layout that an engine knows. They are
    repeated where there are fewer: one sample would make the batch dimension a constant.
    """
    samples = [resized(tensor[:count], shape) for tensor, shape in zip(batch.inputs, sizes.usual, strict=True)]
    if count is None:
        return tuple(samples)
    return tuple(tensor.repeat(-(-count // len(tensor)), *[1] * (tensor.dim() - 1))[:count] for tensor in samples)


def _only_fixed(counts: Sequence[int], batch: int) -> str:
    sizes = ", ".join(map(str, counts))
    advice = (
        f"write --batch {sizes}"
        if len(counts) == 1
        else "let calibration() give batches of one size, and give it with --batch"
    )
    return (
        f"the model can only be traced for one number of samples, calibration() has batches of {sizes}, and the engine "
        "is asked to take "
        f"{batch}: {advice}, or take the batch size from x.shape[0] in forward()"
    )
