"""A run without samples of the user's: calibration data are made, kept in the run,
and stand in for those of the task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from msgspec.structs import replace
from torch import nn

from calib.data import call_task
from calib.errors import UserError
from calib.files.tensor_file import read_tensor_file, write_tensor_file
from calib.network.free_axes import input_names
from calib.sizes import sizes_from_text
from calib.synthetic.batches import Synthetic, steps_of, synthesize
from calib.synthetic.kinds import InputKind, kinds_from_example, kinds_from_shapes
from calib.synthetic.task import data_free
from calib.task import Batch, Task
from deploy.files.synthetic import InputRow, SyntheticFile
from deploy.report.accuracy import said_of
from deploy.run.directory import Run
from deploy.run.settings import Settings
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget

SAMPLES = "synthetic.safetensors"
_REPAIR = "delete it to make it again"
Source = Literal["example_inputs()", "--shape"]


@dataclass(frozen=True)
class DataFree:
    """The task without its samples, and what stands in for them."""

    task: Task
    batches: list[Batch] = field(repr=False)
    record: SyntheticFile

    def keep(self, run: Run) -> None:
        """Write `synthetic.json` and `synthetic.safetensors`, unless they are there."""
        if not run.has(SAMPLES):
            tensors = {
                f"{number}.{position}": tensor
                for number, batch in enumerate(self.batches)
                for position, tensor in enumerate(batch.inputs)
            }
            write_tensor_file(run.file(SAMPLES), self.record, tensors)
        if run.find(SyntheticFile) != self.record:
            run.write(self.record)


def without_samples(run: Run, task: Task, model: nn.Module, settings: Settings, progress: Progress) -> DataFree:
    """Return the task without its samples: besides `model` only `example_inputs` and `evaluation` are called.

    The samples are those that the run has, or made anew by its seed. UserError when it is not known what inputs look
    like, or when the run's samples are of other inputs. Writes nothing.
    """
    kinds, source = _kinds(task, model, settings)
    evaluation = call_task(task, "evaluation") is not None
    if run.has(SAMPLES):
        batches, known = _read(run, kinds)
        record = replace(known, evaluation=evaluation)
    else:
        with progress.bar("make samples", steps_of(settings.samples)) as advance:
            made = synthesize(model, kinds, settings.samples, settings.seed, advance, settings.batch)
        batches, record = list(made.batches), _record(made, kinds, source, settings.seed, evaluation=evaluation)
    progress.say(said_of(record))
    return DataFree(data_free(task, batches), batches, record)


def check_budget(settings: Settings, budget: Budget) -> None:
    """Raise UserError for a limit that takes labels in a run without samples."""
    if settings.data_free and budget.loss is not None and budget.loss.cost == "drop":
        raise UserError(
            f"{budget.loss} needs labels, which --data-free has none of: give a budget on kl, as kl=0.02, or on a cost"
        )


def refuse_data_free(settings: Settings, what: str) -> None:
    """Raise UserError where `what` takes samples of the task, in a run without any."""
    if settings.data_free:
        raise UserError(f"{what} needs samples of the task, and --data-free takes none: leave out one of the two")


def _kinds(task: Task, model: nn.Module, settings: Settings) -> tuple[tuple[InputKind, ...], Source]:
    if getattr(task, "example_inputs", None) is not None:
        return kinds_from_example(call_task(task, "example_inputs")), "example_inputs()"
    if not settings.shapes:
        raise UserError(
            "--data-free needs to know what inputs look like: give the task a method example_inputs() that returns "
            "tensors as forward() takes them (of floats mean and deviation count, of integers the range), or "
            "say the sizes of inputs of floats with --shape, as x=1x3x32x32"
        )
    stated = [sizes_from_text(text) for text in settings.shapes]
    return kinds_from_shapes(stated, lambda count: input_names(model, count)), "--shape"


def _record(
    made: Synthetic, kinds: tuple[InputKind, ...], source: Source, seed: int, *, evaluation: bool
) -> SyntheticFile:
    return SyntheticFile(
        samples=len(made.batches) * made.batch,
        batch=made.batch,
        seed=seed,
        inputs=tuple(map(_row, kinds)),
        source=source,
        norms=made.norms,
        noise_mismatch=made.noise_mismatch,
        mismatch=made.mismatch,
        evaluation=evaluation,
    )


def _row(kind: InputKind) -> InputRow:
    dtype = str(kind.dtype).removeprefix("torch.")
    return InputRow(
        shape=kind.shape, dtype=dtype, mean=kind.mean, deviation=kind.deviation, low=kind.low, high=kind.high
    )


def _read(run: Run, kinds: tuple[InputKind, ...]) -> tuple[list[Batch], SyntheticFile]:
    """Return the samples of a run. What they hold is checked with the fingerprint of the run; an example that is drawn
    anew has other moments each time.
    """
    path = run.file(SAMPLES)
    record, tensors = read_tensor_file(path, SyntheticFile, _REPAIR)
    if [(row.shape, row.dtype) for row in record.inputs] != [(row.shape, row.dtype) for row in map(_row, kinds)]:
        raise UserError(f"the inputs are not those that {path} was made for: use another --out")
    names = [
        [f"{number}.{position}" for position in range(len(kinds))] for number in range(record.samples // record.batch)
    ]
    if sorted(tensors) != sorted(name for row in names for name in row):
        raise UserError(f"{path} is damaged: it does not hold {record.samples} samples: {_REPAIR}")
    return [Batch(tuple(tensors[name] for name in row), None) for row in names], record
