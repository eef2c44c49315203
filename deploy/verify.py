"""The evaluation data through every stage from PyTorch to the engine: where were points lost?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.data import materialize, per_sample
from calib.errors import UserError
from calib.task import Batch
from deploy.backends import onnxruntime as ort_backend
from deploy.backends import tensorrt as tensorrt_backend
from deploy.backends.onnxruntime import OrtEngine
from deploy.engines import BuildFailed, engine_names
from deploy.finetuning import tuned
from deploy.prepare import Prepared, call_task
from deploy.run.files.engine import BuildFile, VerifyFile
from smpq.policy import Policy

STAGES = ("float", "fake_quant", "onnx", "engine")
_Z = 1.96
_EXPLANATIONS = {
    "fake_quant": "quantisation itself: give the layers more bits, or fine-tune",
    "onnx": "the export: the ONNX file does not compute what the fake-quantised model does; this is a bug, please report it",
    "engine": "the runtime: its kernels do not compute what the ONNX file says (see the kernel column)",
}

Runner = Callable[[Batch], Any]
Array = npt.NDArray[Any]


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

    def to_file(self, policy_key: str) -> VerifyFile:
        """Return the file form; `policy_key` names the policy that was verified, and its fine-tuned weights."""
        return msgspec.convert({"schema": VerifyFile.VERSION, "policy": policy_key, **asdict(self)}, VerifyFile)


def verify(prepared: Prepared, policy: Policy) -> Verification:
    """Run the evaluation data through the float model, the fake-quantised model, the ONNX file and the engine.

    The ONNX file is computed as written, in float with its quantisers and no integer kernels; the engine as it was built.
    """
    batches = materialize(call_task(prepared.task, "evaluation"), what="evaluation")
    with tempfile.TemporaryDirectory() as directory:
        runners = _runners(prepared, policy, Path(directory))
    stages: dict[str, Stage] = {}
    previous: tuple[Tensor, Tensor | None] | None = None
    for name, runner in runners.items():
        if isinstance(runner, str):
            stages[name] = Stage(None, None, None, None, None, runner)
            continue
        with prepared.progress.bar(f"verify {name}", len(batches)) as advance:
            current = _collect(prepared, batches, runner, advance)
        stages[name] = _compare(current, previous)
        previous = current
    lost_at = _lost_at(stages)
    explanation = (
        f"points were lost at {lost_at}: {_EXPLANATIONS[lost_at]}"
        if lost_at
        else "no stage lost points that the data can tell from zero"
    )
    samples = sum(len(batch.inputs[0]) for batch in batches)
    return Verification(prepared.task.metric_name, samples, stages, lost_at, explanation)


def _runners(prepared: Prepared, policy: Policy, directory: Path) -> dict[str, Runner | str]:
    """Return how each stage computes a batch's output, or why it cannot; `directory` is for files that only loading needs."""
    traced, run = prepared.traced, prepared.run
    fine_tuned = tuned(prepared, policy)
    simulated = traced if fine_tuned is None else fine_tuned.traced
    edits = prepared.fake_quantizer.edits(prepared.plan(policy)) if fine_tuned is None else fine_tuned.edits()
    names = engine_names(prepared.target)
    runners: dict[str, Runner | str] = {
        "float": lambda batch: traced.run(batch.inputs),
        "fake_quant": lambda batch: simulated.run(batch.inputs, edits),
    }
    model = run.file(names.model)
    reference = directory / model.name
    record = ort_backend.build_engine(model, reference, exact=True)
    if isinstance(record, BuildFailed):
        runners["onnx"] = f"onnxruntime does not load it: {record.reason}"
    else:
        runners["onnx"] = _session_runner(prepared, ort_backend.load_engine(reference, threads=torch.get_num_threads()))
    build = run.find(BuildFile)
    built_on = build.built_on if build is not None else None
    if built_on is not None:
        runners["engine"] = f"it was built on {built_on}, which does not have the evaluation data"
    elif prepared.target.runtime != "onnxruntime":
        runners["engine"] = _plan_runner(prepared)
    else:
        engine = run.file(names.engines[""])
        if not engine.is_file():
            raise UserError(f"{engine} is missing: build it with smpq build")
        runners["engine"] = _session_runner(prepared, ort_backend.load_engine(engine, threads=torch.get_num_threads()))
    return runners


def _session_runner(prepared: Prepared, engine: OrtEngine) -> Runner:
    fixed = engine.record.inputs[0].shape[0]
    return _in_batches(prepared, engine.run, fixed if isinstance(fixed, int) else None)


def _plan_runner(prepared: Prepared) -> Runner | str:
    """Return how the plan for the GPU of this machine computes a batch, or why nothing here can."""
    try:
        capability = tensorrt_backend.gpu_compute_capability()
    except UserError as error:
        return str(error)
    plans = engine_names(prepared.target).engines
    name = plans.get(capability, plans.get(""))
    if name is None:
        return f"the run has plans for {', '.join(plans)}, and the GPU of this machine is {capability}: build for it with --sm {capability}"
    plan = tensorrt_backend.PlanRunner(prepared.run.file(name), prepared.target.runtime, prepared.traced.inputs)
    return _in_batches(prepared, plan.run, prepared.settings.batch)


def _in_batches(prepared: Prepared, compute: Callable[[list[Array]], list[Array]], size: int | None) -> Runner:
    """Return how an engine that takes batches of `size`, or of any size, computes a batch."""
    spec = prepared.traced.program.call_spec.out_spec

    def run(batch: Batch) -> Any:
        arrays = [tensor.numpy() for tensor in batch.inputs]
        count = len(arrays[0])
        step = size or count
        parts = []
        for start in range(0, count, step):
            chunk = [_padded(array[start : start + step], step) for array in arrays]
            parts.append(compute(chunk))
        outputs = [torch.from_numpy(np.concatenate(column)[:count]) for column in zip(*parts, strict=True)]
        return pytree.tree_unflatten(outputs, spec)

    return run


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Fill up the last, smaller batch of an engine with a fixed batch size; the extra results are cut off."""
    missing = size - len(array)
    return array if missing == 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _collect(
    prepared: Prepared, batches: Sequence[Batch], runner: Runner, advance: Callable[[], None]
) -> tuple[Tensor, Tensor | None]:
    """Return `[n]` metric values, and `[n]` top classes where the output is `[n, classes]`."""
    values, classes = [], []
    for batch in batches:
        output = runner(batch)
        values.append(per_sample(prepared.task.metric, (output, batch.target), len(batch.inputs[0]), "metric"))
        first = pytree.tree_leaves(output)[0]
        if first.dim() == 2:  # class scores
            classes.append(first.argmax(1))
        advance()
    return torch.cat(values), torch.cat(classes) if classes else None


def _compare(current: tuple[Tensor, Tensor | None], previous: tuple[Tensor, Tensor | None] | None) -> Stage:
    values, classes = current
    mean, interval = _mean_interval(values)
    if previous is None:
        return Stage(mean, interval, None, None, None)
    change, change_interval = _mean_interval(values - previous[0])
    agreement = None
    if classes is not None and previous[1] is not None:
        agreement = float((classes == previous[1]).double().mean())
    return Stage(mean, interval, change, change_interval, agreement)


def _mean_interval(values: Tensor) -> tuple[float, tuple[float, float]]:
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, (mean - _Z * error, mean + _Z * error)


def _lost_at(stages: dict[str, Stage]) -> str | None:
    lost = {
        name: stage.change
        for name, stage in stages.items()
        if stage.change is not None and stage.change_interval is not None and stage.change_interval[1] < 0
    }
    return min(lost, key=lambda name: lost[name]) if lost else None
