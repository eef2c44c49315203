"""The evaluation data through every stage from PyTorch to the engine: where were points lost?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from msgspec.structs import replace

from deploy.files.verification import StageName, StageRow, VerifyFile, WholeChange, lost_stages, lowers, spread_of
from deploy.run.workspace import Workspace
from deploy.stages.batch_sizes import differs_by_size
from deploy.stages.evaluation import Evaluation
from deploy.stages.passage import Passage, agreement, go_on, moved
from deploy.stages.stage_runners import Runner, stage_runners
from smpq.problem.policy import Policy
from smpq.value.resampling import UndefinedError

_FIRST_SAMPLES = 512
"""So many samples go through the stages between the first and the last at least."""
_EXPLANATIONS: Mapping[StageName, str] = {
    "float": "the trace: the traced graph does not compute what the PyTorch module does; this is a bug, "
    "please report it",
    "fake_quant": "quantisation itself: give the layers more bits, or fine-tune",
    "onnx": "the export: the ONNX file does not compute what the fake-quantised model does; this is a bug, "
    "please report it",
    "engine": "the runtime: its kernels do not compute what the ONNX file says (see the kernel column)",
}


def verify(workspace: Workspace, policy: Policy, policy_key: str) -> VerifyFile:
    """Run the evaluation data through the user's module, its trace, the fake-quantised model, the ONNX file and the
    engine.

    1. The ONNX file is computed as written, in float with its quantisers and no integer kernels; the engine as it was
       built.
    2. The first and the last stage that run here have all samples: they say what the engine is worth. The stages
       between say where accuracy was lost. They have 512 samples, and where some was lost as many as it takes to tell
       by which of them (`_settled`).
    3. The trace must give what the module gives, and an engine for any batch size the same for a sample alone as for
       the same sample among others.

    `policy_key` names the policy that is verified, and its fine-tuned weights. Raises UserError when a stage gives NaN
    or infinity.
    """
    data = Evaluation(workspace.task, workspace.traced.sizes)
    with tempfile.TemporaryDirectory() as directory:
        runners = stage_runners(workspace, policy, Path(directory))
    passages = _passages(workspace, runners, data)
    doubt = passages[0].found.doubt()
    if doubt is not None:
        workspace.progress.warn(doubt)
    stages = dict(_rows(runners, passages))
    if callable(runners["engine"]) and callable(runners["fake_quant"]):
        _, batch = next(data.batches(0, 1))
        alone = differs_by_size(runners["engine"], runners["fake_quant"], batch, (1, workspace.settings.batch))
        stages["engine"] = replace(stages["engine"], problem=alone)
    change = passages[0].found.change_to(passages[-1].found)
    whole = WholeChange(change=change.value, interval=change.interval, agreement=agreement(passages[0], passages[-1]))
    record = VerifyFile(
        policy=policy_key,
        metric=workspace.task.metric_name,
        samples=data.samples,
        stages=stages,
        whole=whole,
        confidence=moved(passages[0], passages[-1]),
        lost_at=next(iter(lost_stages(stages)), None),
        explanation="",
    )
    return replace(record, explanation=_explanation(record))


def _passages(workspace: Workspace, runners: Mapping[StageName, Runner | str], data: Evaluation) -> list[Passage]:
    """Return the stages that run here, in their order, each with the samples that it needs."""
    task, progress = workspace.task, workspace.progress
    able = {name: runner for name, runner in runners.items() if not isinstance(runner, str)}
    first, *between, last = able
    ends = [Passage(task, name, able[name]) for name in (first, last)]
    with progress.bar(f"verify {first} {last}", 2 * len(data)) as advance:
        go_on(ends, data.batches(), advance)
    middle = [Passage(task, name, able[name], able[first] if name == "float" else None) for name in between]
    passages, samples = [ends[0], *middle, ends[1]], _FIRST_SAMPLES
    start = 0
    while middle and start < len(data):
        end = data.count(samples)
        with progress.bar(f"verify {' '.join(between)}", len(between) * (end - start)) as advance:
            go_on(middle, data.batches(start, end), advance)
        if _settled(passages):
            break
        start, samples = end, 2 * samples
    return passages


def _settled(passages: Sequence[Passage]) -> bool:
    """Whether no accuracy was lost, or the changes at all stages but one are known to half of what the loss may be at
    most. What is left of the loss was then lost at the one. Not as long as the metric is undefined on the samples of
    the stages between.
    """
    loss = passages[0].found.change_to(passages[-1].found)
    first = _row(passages[0], None)
    lost = lowers(loss.value, loss.interval, spread_of({passages[0].name: first}))
    try:
        rows = [_row(current, previous) for previous, current in pairwise(passages)]
    except UndefinedError:
        return False
    ends = [row.change_interval for row in rows if row.change_interval is not None]
    widths = sorted(each.high - each.low for each in ends)
    return not lost or all(width <= -loss.interval.low for width in widths[:-1])


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
    figure = current.found.figure()
    change = None if previous is None else previous.found.change_to(current.found)
    return StageRow(
        mean=figure.value,
        interval=figure.interval,
        change=None if change is None else change.value,
        change_interval=None if change is None else change.interval,
        agreement=None if previous is None else agreement(previous, current),
        samples=current.found.samples,
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
