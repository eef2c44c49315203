"""The evaluation data through every stage from PyTorch to the engine: where were points lost?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.data import materialize, per_sample
from calib.errors import UserError
from calib.network.agreement import Agreement
from calib.task import Batch
from deploy.files.engine import NORMAL_95, StageName, StageRow, VerifyFile, lost_stages
from deploy.run.opening import call_task
from deploy.run.workspace import Workspace
from deploy.stages.batch_sizes import differs_by_size
from deploy.stages.stage_runners import Runner, stage_runners
from smpq.files import Interval
from smpq.problem.policy import Policy

_KEPT_BYTES = 1 << 28
"""Of the module's own outputs so many are kept until the trace has been compared with them."""
_EXPLANATIONS: Mapping[StageName, str] = {
    "float": "the trace: the traced graph does not compute what the PyTorch module does; this is a bug, please report it",
    "fake_quant": "quantisation itself: give the layers more bits, or fine-tune",
    "onnx": "the export: the ONNX file does not compute what the fake-quantised model does; this is a bug, please report it",
    "engine": "the runtime: its kernels do not compute what the ONNX file says (see the kernel column)",
}


def verify(workspace: Workspace, policy: Policy, policy_key: str) -> VerifyFile:
    """Run the evaluation data through the user's module, its trace, the fake-quantised model, the ONNX file and the
    engine.

    The ONNX file is computed as written, in float with its quantisers and no integer kernels; the engine as it was
    built. The trace must give what the module gives, and an engine for any batch size the same for a sample alone as
    for the same sample among others. `policy_key` names the policy that is verified, and its fine-tuned weights. Raises
    UserError when a stage gives NaN or infinity.
    """
    batches = materialize(call_task(workspace.task, "evaluation"), what="evaluation")
    with tempfile.TemporaryDirectory() as directory:
        runners = stage_runners(workspace, policy, Path(directory))
    stages: dict[StageName, StageRow] = {}
    previous: StageResults | None = None
    for name, runner in runners.items():
        if isinstance(runner, str):
            stages[name] = StageRow(
                mean=None, interval=None, change=None, change_interval=None, agreement=None, not_run=runner
            )
            continue
        reference = previous.outputs if name == "float" and previous is not None else ()
        with workspace.progress.bar(f"verify {name}", len(batches)) as advance:
            current = collect(workspace, batches, name, runner, reference, advance)
        stages[name] = _compared(current, previous)
        previous = current
    if callable(runners["engine"]) and callable(runners["fake_quant"]):
        alone = differs_by_size(runners["engine"], runners["fake_quant"], batches[0], (1, workspace.settings.batch))
        stages["engine"] = replace(stages["engine"], problem=alone)
    samples = sum(len(batch.inputs[0]) for batch in batches)
    lost_at = next(iter(lost_stages(stages, samples)), None)
    explanation = "no stage lost points that the data can tell from zero"
    if lost_at is not None:
        found = f" ({stages[lost_at].problem})" if stages[lost_at].problem is not None else ""
        explanation = f"points were lost at {lost_at}: {_EXPLANATIONS[lost_at]}{found}"
    return VerifyFile(
        policy=policy_key,
        metric=workspace.task.metric_name,
        samples=samples,
        stages=stages,
        lost_at=lost_at,
        explanation=explanation,
    )


@dataclass
class StageResults:
    """What one stage gave: `[n]` metric values, `[n]` top classes where the output is `[n, classes]`, the first
    outputs.

    `problem` says in words where the outputs are not those that they were compared with.
    """

    values: Tensor
    classes: Tensor | None
    outputs: Sequence[Any] = field(default=())
    problem: str | None = None


def collect(
    workspace: Workspace,
    batches: Sequence[Batch],
    name: str,
    runner: Runner,
    reference: Sequence[Any],
    advance: Callable[[], None],
) -> StageResults:
    """Return what a stage gives for the evaluation batches; its first outputs are compared with `reference`.

    UserError where an output holds NaN or infinity.
    """
    values, classes, outputs, room = [], [], [], _KEPT_BYTES
    broken, problem = 0, None
    agreement = Agreement(reference[0]) if reference else None
    for index, batch in enumerate(batches):
        output, count = runner(batch), len(batch.inputs[0])
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        broken += _not_finite(leaves, count)
        if not broken:
            values.append(per_sample(workspace.task.metric, (output, batch.target), count, "metric"))
        if leaves[0].dim() == 2 and len(leaves[0]) == count:  # class scores
            classes.append(leaves[0].argmax(1))
        if agreement is not None and index < len(reference) and problem is None:
            problem = agreement.difference(output, reference[index])
        room -= sum(leaf.nbytes for leaf in leaves)
        if name == "eager" and room >= 0:
            outputs.append(output)
        advance()
    if broken:
        samples = sum(len(batch.inputs[0]) for batch in batches)
        raise UserError(
            f"the output of stage {name} holds NaN or infinity for {broken} of {samples} samples of the evaluation "
            "data: "
            f"{'correct the model or the data' if name in ('eager', 'float') else 'try another format, observer or target'}"
        )
    return StageResults(
        torch.cat(values), torch.cat(classes) if len(classes) == len(batches) else None, outputs, problem
    )


def _not_finite(leaves: Sequence[Tensor], count: int) -> int:
    """Return how many samples of a batch have a value that is not finite; all of them where an output does not count
    samples.
    """
    found = torch.zeros(count, dtype=torch.bool)
    for leaf in leaves:
        if leaf.is_floating_point() or leaf.is_complex():
            odd = ~torch.isfinite(leaf)
            found |= odd.reshape(count, -1).any(1) if leaf.dim() and len(leaf) == count else odd.any()
    return int(found.sum())


def _compared(current: StageResults, previous: StageResults | None) -> StageRow:
    mean, interval = mean_interval(current.values)
    change, change_interval, agreement = None, None, None
    if previous is not None:
        change, change_interval = mean_interval(current.values - previous.values)
        if current.classes is not None and previous.classes is not None:
            agreement = float((current.classes == previous.classes).double().mean())
    return StageRow(
        mean=mean,
        interval=interval,
        change=change,
        change_interval=change_interval,
        agreement=agreement,
        problem=current.problem,
    )


def mean_interval(values: Tensor) -> tuple[float, Interval]:
    """Return the mean of `[n]` values with its 95 % interval."""
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, Interval(mean - NORMAL_95 * error, mean + NORMAL_95 * error)
