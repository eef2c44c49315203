"""The evaluation data through every stage from PyTorch to the engine: where were points lost?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.agreement import Agreement
from calib.data import materialize, per_sample
from calib.errors import UserError
from calib.task import Batch
from deploy.batch_sizes import differs_by_size
from deploy.prepare import Prepared, call_task
from deploy.stage_runners import Runner, stage_runners
from smpq.policy import Policy

_Z = 1.96
_ROUNDING = 1e-4
"""A change of a metric by this share of its spread over samples may be rounding, however surely the data tell it from zero."""
_KEPT_BYTES = 1 << 28
"""Of the module's own outputs so many are kept until the trace has been compared with them."""
_EXPLANATIONS = {
    "float": "the trace: the traced graph does not compute what the PyTorch module does; this is a bug, please report it",
    "fake_quant": "quantisation itself: give the layers more bits, or fine-tune",
    "onnx": "the export: the ONNX file does not compute what the fake-quantised model does; this is a bug, please report it",
    "engine": "the runtime: its kernels do not compute what the ONNX file says (see the kernel column)",
}


@dataclass(frozen=True)
class Stage:
    """The metric of one stage, in the metric's unit.

    `mean` with its 95 % interval over samples; `change` is the paired difference to the stage before, with its interval; `agreement` the
    share of samples with the same top class as the stage before. `not_run` says why there are no numbers.
    """

    mean: float | None
    interval: tuple[float, float] | None
    change: float | None
    change_interval: tuple[float, float] | None
    agreement: float | None
    not_run: str | None = None


@dataclass(frozen=True)
class Verification:
    """All stages; `lost_at` is the stage with the largest drop that the data can tell from zero, if there is one."""

    metric: str
    samples: int
    stages: dict[str, Stage]
    lost_at: str | None
    explanation: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a run's files."""
        return {"schema": 1, **asdict(self)}


def verify(prepared: Prepared, policy: Policy) -> Verification:
    """Run the evaluation data through the user's module, its trace, the fake-quantised model, the ONNX file and the engine.

    The ONNX file is computed as written, in float with its quantisers and no integer kernels; the engine as it was built. The trace must
    give what the module gives, and an engine for any batch size the same for a sample alone as for the same sample among others.
    Raises UserError when a stage gives NaN or infinity.
    """
    batches = materialize(call_task(prepared.task, "evaluation"), what="evaluation")
    with tempfile.TemporaryDirectory() as directory:
        runners = stage_runners(prepared, policy, Path(directory))
    stages: dict[str, Stage] = {}
    previous: _Results | None = None
    problems: dict[str, str] = {}
    for name, runner in runners.items():
        if isinstance(runner, str):
            stages[name] = Stage(None, None, None, None, None, runner)
            continue
        reference = previous.outputs if name == "float" and previous is not None else ()
        with prepared.progress.bar(f"verify {name}", len(batches)) as advance:
            current = _collect(prepared, batches, name, runner, reference, advance)
        if current.problem is not None:
            problems[name] = current.problem
        stages[name] = _compare(current, previous)
        previous = current
    if callable(runners["engine"]) and callable(runners["fake_quant"]):
        alone = differs_by_size(runners["engine"], runners["fake_quant"], batches[0], (1, prepared.settings.batch))
        if alone is not None:
            problems["engine"] = alone
    lost_at = next(iter(problems), None) or _lost_at(stages, sum(len(batch.inputs[0]) for batch in batches))
    explanation = "no stage lost points that the data can tell from zero"
    if lost_at:
        found = f" ({problems[lost_at]})" if lost_at in problems else ""
        explanation = f"points were lost at {lost_at}: {_EXPLANATIONS[lost_at]}{found}"
    samples = sum(len(batch.inputs[0]) for batch in batches)
    return Verification(prepared.task.metric_name, samples, stages, lost_at, explanation)


@dataclass
class _Results:
    """What one stage gave: `[n]` metric values, `[n]` top classes where the output is `[n, classes]`, the first outputs.

    `problem` says in words where the outputs are not those that they were compared with.
    """

    values: Tensor
    classes: Tensor | None
    outputs: Sequence[Any] = field(default=())
    problem: str | None = None


def _collect(
    prepared: Prepared,
    batches: Sequence[Batch],
    name: str,
    runner: Runner,
    reference: Sequence[Any],
    advance: Callable[[], None],
) -> _Results:
    values, classes, outputs, room = [], [], [], _KEPT_BYTES
    broken, problem = 0, None
    agreement = Agreement(reference[0]) if reference else None
    for index, batch in enumerate(batches):
        output, count = runner(batch), len(batch.inputs[0])
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        broken += _not_finite(leaves, count)
        if not broken:
            values.append(per_sample(prepared.task.metric, (output, batch.target), count, "metric"))
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
            f"the output of stage {name} holds NaN or infinity for {broken} of {samples} samples of the evaluation data: "
            f"{'correct the model or the data' if name in ('eager', 'float') else 'try another format, observer or target'}"
        )
    return _Results(torch.cat(values), torch.cat(classes) if len(classes) == len(batches) else None, outputs, problem)


def _not_finite(leaves: Sequence[Tensor], count: int) -> int:
    """Return how many samples of a batch have a value that is not finite; all of them where an output does not count samples."""
    found = torch.zeros(count, dtype=torch.bool)
    for leaf in leaves:
        if leaf.is_floating_point() or leaf.is_complex():
            odd = ~torch.isfinite(leaf)
            found |= odd.reshape(count, -1).any(1) if leaf.dim() and len(leaf) == count else odd.any()
    return int(found.sum())


def _compare(current: _Results, previous: _Results | None) -> Stage:
    mean, interval = _mean_interval(current.values)
    if previous is None:
        return Stage(mean, interval, None, None, None)
    change, change_interval = _mean_interval(current.values - previous.values)
    agreement = None
    if current.classes is not None and previous.classes is not None:
        agreement = float((current.classes == previous.classes).double().mean())
    return Stage(mean, interval, change, change_interval, agreement)


def _mean_interval(values: Tensor) -> tuple[float, tuple[float, float]]:
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, (mean - _Z * error, mean + _Z * error)


def _lost_at(stages: dict[str, Stage], samples: int) -> str | None:
    """Return the stage with the largest loss that the data can tell from zero and that is more than the rounding of float32."""
    low, high = stages["eager"].interval or (0.0, 0.0)
    spread = (high - low) / (2 * _Z) * math.sqrt(samples)
    lost = {
        name: stage.change
        for name, stage in stages.items()
        if stage.change is not None and stage.change_interval is not None and stage.change_interval[1] < 0
        if stage.change < -_ROUNDING * (spread or abs(stages["eager"].mean or 0.0))
    }
    return min(lost, key=lambda name: lost[name]) if lost else None
