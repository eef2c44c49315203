"""Open a run: load the task, trace its model, find what may be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calib.batches import calibration_batches
from calib.data import call_task, check_model, each_batch
from calib.errors import UserError
from calib.formats.format import formats_from_text
from calib.network.attention import find_attention
from calib.network.modules import writable
from calib.network.units import Skipped, find_units
from calib.sizes import InputSizes
from calib.task import Batch, Task
from calib.tasks import load_task
from calib.threads import computing_with
from deploy.devices.address import device_from_address
from deploy.files.search import CalibrationFile
from deploy.run.data_free import DataFree, without_samples
from deploy.run.directory import Run
from deploy.run.float_model import trace_float_model, try_task
from deploy.run.settings import Settings
from deploy.run.threads import settle_threads, threads_before_a_trace
from deploy.run.workspace import DEVICE, Workspace, rules_of
from deploy.targets.families import FAMILIES
from deploy.targets.offers import refusal, unknown_offers
from deploy.targets.target import Target, target_from_name
from deploy.terminal.progress import Progress
from smpq.problem.groups import find_groups, space_from_formats
from smpq.problem.joins import find_joins
from smpq.problem.pins import pin_from_text
from smpq.value.parts import check_memory_limit
from smpq.value.workers.process import check_portable
from smpq.value.workers.resources import Resources

_REASONS = 3
"""So many of the layers that are skipped are named where nothing else is left."""


def open_workspace(
    run: Run, settings: Settings, progress: Progress, resources: Resources, address: str = ""
) -> Workspace:
    """Load the task, fold and trace its model, and restrict the formats to what the target runs. Writes nothing."""
    device = device_from_address(address, run.file(DEVICE))
    pool = resources.pool()
    target = target_from_name(settings.target, settings.compute_capabilities)
    _check_attention(settings, target)
    formats = formats_from_text(settings.formats) if settings.formats else target.default_formats
    with progress.step("load the task"):
        task = load_task(settings.task, _path(settings.data), _path(settings.weights))
        model = writable(check_model(call_task(task, "model")))
    made = without_samples(run, task, model, settings, progress) if settings.data_free else None
    if made is not None:
        task = made.task
    with progress.step("load the samples"):
        batches = calibration_batches(call_task(task, "calibration"), resources.memory_limit_mb)
    with progress.step("trace the model"), computing_with(threads_before_a_trace()):
        traced, folded = trace_float_model(model.eval(), batches, settings, target, progress)
        judged = batches[0] if made is None else _first_of_evaluation(task, made, traced.sizes)
        try_task(task, traced, batches[0], settings.value, judged, progress.warn)
    began = run.find(CalibrationFile)
    threads = settle_threads(traced, batches[0], began.threads if began is not None else None)
    units, skipped = find_units(traced)
    attention, left = find_attention(traced, units) if settings.attention else ((), ())
    for each in left:
        progress.warn(f"{each.path} ({each.operator}): {each.reason}")
    if settings.attention and not attention:
        progress.warn("--attention changes nothing: the network has no attention whose products can be quantised")
    if pool is not None:
        check_portable(task, settings.value)
    if resources.memory_limit_mb is not None:
        check_memory_limit(traced, units, resources.memory_limit_mb)
    if not units:
        raise UserError(_no_layer(skipped))
    groups = find_groups(traced, units)
    space, refused = space_from_formats(
        groups,
        formats,
        target.reference,
        lambda unit, chosen: refusal(target, unit, chosen, size_only=settings.size_only),
        find_joins(traced, groups, rules_of(target)),
        [pin_from_text(text) for text in settings.pins],
        () if settings.formats else target.default_choices,
    )
    for sentence in unknown_offers(target, space, settings.batch):
        progress.warn(sentence)
    return Workspace(
        run,
        settings,
        task,
        target,
        traced,
        space,
        (*skipped, *left),
        refused,
        batches,
        progress,
        model,
        folded,
        resources,
        pool,
        address,
        device,
        threads,
        made,
        attention,
    )


def _check_attention(settings: Settings, target: Target) -> None:
    """Raise UserError where products of attention are to be quantised, and no kernel of the target computes them so."""
    if settings.attention and not target.attention:
        able = ", ".join(name for name, family in FAMILIES.items() if family.target.attention)
        raise UserError(
            f"--attention: {target.name} computes the products of attention in floating point; use --target {able}, or "
            "leave --attention out"
        )


def _no_layer(skipped: Sequence[Skipped]) -> str:
    """Say that nothing can be quantised, and why the first layers cannot be."""
    reasons = [f"{each.path} ({each.operator}): {each.reason}" for each in skipped[:_REASONS]]
    more = [f"and {len(skipped) - _REASONS} more"] if len(skipped) > _REASONS else []
    return ". ".join(["the model has no layer that can be quantised (convolution or linear)", *reasons, *more])


def _first_of_evaluation(task: Task, made: DataFree, sizes: InputSizes) -> Batch | None:
    """Return a batch that the metric can be tried on where calibration has no targets; None where there is none."""
    return next(each_batch(call_task(task, "evaluation"), "evaluation", sizes)) if made.record.evaluation else None


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
