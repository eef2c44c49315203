"""The evaluation data through every stage from PyTorch to the engine: where were points lost?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise, starmap
from pathlib import Path

from msgspec.structs import replace

from calib.data import materialize
from calib.task import Batch
from deploy.files.verification import StageName, StageRow, VerifyFile, WholeChange, lost_stages, lowers, spread_of
from deploy.run.opening import call_task
from deploy.run.workspace import Workspace
from deploy.stages.batch_sizes import differs_by_size
from deploy.stages.passage import Passage, agreement, mean_change, mean_interval
from deploy.stages.stage_runners import Runner, stage_runners
from smpq.problem.policy import Policy

_FIRST_SAMPLES = 1024
"""So many samples go through the stages between the first and the last at least."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_EXPLANATIONS: Mapping[StageName, str] = {
    "float": "the trace: the traced graph does not compute what the PyTorch module does; this is a bug, please report it",
    "fake_quant": "quantisation itself: give the layers more bits, or fine-tune",
    "onnx": "the export: the ONNX file does not compute what the fake-quantised model does; this is a bug, please report it",
    "engine": "the runtime: its kernels do not compute what the ONNX file says (see the kernel column)",
}


def verify(workspace: Workspace, policy: Policy, policy_key: str) -> VerifyFile:
    """Run the evaluation data through the user's module, its trace, the fake-quantised model, the ONNX file and the
    engine.

    1. The ONNX file is computed as written, in float with its quantisers and no integer kernels; the engine as it was
       built.
    2. The first and the last stage that run here have all samples: they say what the engine is worth. The stages
       between say where accuracy was lost. They have 1,024 samples, and where some was lost as many as it takes to tell
       by which of them (`_settled`).
    3. The trace must give what the module gives, and an engine for any batch size the same for a sample alone as for
       the same sample among others.

    `policy_key` names the policy that is verified, and its fine-tuned weights. Raises UserError when a stage gives NaN
    or infinity.
    """
    batches = spread_out(materialize(call_task(workspace.task, "evaluation"), what="evaluation"))
    with tempfile.TemporaryDirectory() as directory:
        runners = stage_runners(workspace, policy, Path(directory))
    passages = _passages(workspace, runners, batches)
    stages = dict(_rows(runners, passages))
    if callable(runners["engine"]) and callable(runners["fake_quant"]):
        alone = differs_by_size(runners["engine"], runners["fake_quant"], batches[0], (1, workspace.settings.batch))
        stages["engine"] = replace(stages["engine"], problem=alone)
    change, interval = mean_change(passages[0], passages[-1])
    whole = WholeChange(change=change, interval=interval, agreement=agreement(passages[0], passages[-1]))
    record = VerifyFile(
        policy=policy_key,
        metric=workspace.task.metric_name,
        samples=sum(len(batch.inputs[0]) for batch in batches),
        stages=stages,
        whole=whole,
        lost_at=next(iter(lost_stages(stages)), None),
        explanation="",
    )
    return replace(record, explanation=_explanation(record))


def spread_out(batches: Sequence[Batch]) -> list[Batch]:
    """Return the batches in an order of which any beginning is spread over all of them, and the first is the first.

    Data is often sorted, by class for example. The order is that of the multiples of the golden ratio modulo 1, which
    leave no large gap (the three-distance theorem).
    """
    return [batches[index] for index in sorted(range(len(batches)), key=lambda index: index * _GOLDEN % 1)]


def _passages(
    workspace: Workspace, runners: Mapping[StageName, Runner | str], batches: Sequence[Batch]
) -> list[Passage]:
    """Return the stages that run here, in their order, each with the samples that it needs."""
    task, progress = workspace.task, workspace.progress
    able = {name: runner for name, runner in runners.items() if not isinstance(runner, str)}
    first, *between, last = able
    ends = []
    for name in (first, last):
        with progress.bar(f"verify {name}", len(batches)) as advance:
            ends.append(Passage(task, name, able[name]).go_on(batches, advance))
    middle = [Passage(task, name, able[name], ends[0].outputs if name == "float" else ()) for name in between]
    passages, samples = [ends[0], *middle, ends[1]], _FIRST_SAMPLES
    start = 0
    while middle and start < len(batches):
        end = _count(batches, samples)
        with progress.bar(f"verify {' '.join(between)}", len(between) * (end - start)) as advance:
            for passage in middle:
                passage.go_on(batches[start:end], advance)
        if _settled(passages):
            break
        start, samples = end, 2 * samples
    return passages


def _count(batches: Sequence[Batch], samples: int) -> int:
    """Return how many of the first batches have so many samples; all where there are fewer."""
    seen = 0
    for index, batch in enumerate(batches):
        seen += len(batch.inputs[0])
        if seen >= samples:
            return index + 1
    return len(batches)


def _settled(passages: Sequence[Passage]) -> bool:
    """Whether no accuracy was lost, or the changes at all stages but one are known to half of what the loss may be at
    most. What is left of the loss was then lost at the one.
    """
    loss, ends = mean_change(passages[0], passages[-1])
    first = _row(passages[0], None)
    if not lowers(loss, ends, spread_of({passages[0].name: first})):
        return True
    widths = sorted(each.high - each.low for _, each in starmap(mean_change, pairwise(passages)))
    return all(width <= -ends.low for width in widths[:-1])


def _rows(
    runners: Mapping[StageName, Runner | str], passages: Sequence[Passage]
) -> Sequence[tuple[StageName, StageRow]]:
    done = {passage.name: passage for passage in passages}
    rows, previous = [], None
    for name, runner in runners.items():
        if isinstance(runner, str):
            empty = StageRow(
                mean=None,
                interval=None,
                change=None,
                change_interval=None,
                agreement=None,
                samples=None,
                not_run=runner,
            )
            rows.append((name, empty))
            continue
        rows.append((name, _row(done[name], previous)))
        previous = done[name]
    return rows


def _row(current: Passage, previous: Passage | None) -> StageRow:
    mean, interval = mean_interval(current.values)
    change, change_interval = (None, None) if previous is None else mean_change(previous, current)
    return StageRow(
        mean=mean,
        interval=interval,
        change=change,
        change_interval=change_interval,
        agreement=None if previous is None else agreement(previous, current),
        samples=len(current.values),
        problem=current.problem,
    )


def _explanation(record: VerifyFile) -> str:
    lost_at = record.lost_at
    if lost_at is not None:
        problem = record.stages[lost_at].problem
        found = f" ({problem})" if problem is not None else ""
        return f"points were lost at {lost_at}: {_EXPLANATIONS[lost_at]}{found}"
    if record.lost_in_all:
        return (
            "points were lost from the first stage to the last; the data do not tell at which, the largest drop is at "
            f"{record.largest_drop}"
        )
    return "no stage lost points that the data can tell from zero"
