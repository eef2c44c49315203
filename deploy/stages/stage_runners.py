"""How each stage from PyTorch to the engine computes one batch, in whatever batch sizes it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.errors import UserError
from calib.network.execution import ordered
from calib.network.faithful import run_eager
from calib.network.graph import TracedModel
from calib.network.order import convolves, order_borne_by
from calib.task import Batch
from deploy.backends import onnxruntime as ort_backend
from deploy.backends.base import BuildFailed, OpenEngine
from deploy.files.engine import BuildFile
from deploy.files.verification import StageName
from deploy.run.float_onnx import as_output
from deploy.run.workspace import Workspace
from deploy.stages.finetuning import tuned
from smpq.problem.policy import Policy

_FEW = 8
"""Samples on which the user's module shows that the order in memory does not matter."""
Runner = Callable[[Batch], Any]


@dataclass(frozen=True)
class EngineRunner:
    """A `Runner` of an engine. `any_thread` is that of `OpenEngine`."""

    compute: Runner
    any_thread: bool

    def __call__(self, batch: Batch) -> Any:
        """Return what the engine gives for a batch."""
        return self.compute(batch)


def stage_runners(workspace: Workspace, policy: Policy, directory: Path) -> dict[StageName, Runner | str]:
    """Return how each stage computes a batch's output, or why it cannot; `directory` is for files that only loading
    needs.

    The stages: the user's own module; its trace; the trace with fake quantisers; the ONNX file computed as written; the
    engine as built.
    """
    traced, run = workspace.traced, workspace.run
    fixed = _fixed(traced)
    names, threads = workspace.backend.names, torch.get_num_threads()
    runners: dict[StageName, Runner | str] = {
        "eager": _EagerRunner(workspace, fixed),
        "float": in_batches(workspace.traced, traced.run, fixed),
        "fake_quant": fake_quant_runner(workspace, policy),
    }
    model = run.file(names.model)
    reference = directory / model.name
    record = ort_backend.build_engine(model, reference, exact=True)
    if isinstance(record, BuildFailed):
        runners["onnx"] = f"onnxruntime does not load it: {record.reason}"
    else:
        written = ort_backend.load_engine(reference, threads=threads)
        runners["onnx"] = engine_runner(workspace.traced, written.opened())
    build = run.find(BuildFile)
    built_on = build.built_on if build is not None else None
    if built_on is not None:
        runners["engine"] = f"it was built on {built_on}, which does not have the evaluation data"
    else:
        runners["engine"] = built_engine_runner(workspace, threads)
    return runners


def fake_quant_runner(workspace: Workspace, policy: Policy) -> Runner:
    """Return how the trace with the policy's fake quantisers, and its fine-tuned weights if there are any, computes a
    batch. It keeps nothing of the run.
    """
    fine_tuned = tuned(workspace, policy)
    if fine_tuned is None:
        return untuned_runner(workspace, policy)
    traced, edits = fine_tuned.traced, fine_tuned.edits()
    return in_batches(workspace.traced, lambda inputs: traced.run(inputs, edits), _fixed(workspace.traced))


def untuned_runner(workspace: Workspace, policy: Policy) -> Runner:
    """Return how the trace with the policy's fake quantisers computes a batch, whatever weights were fine-tuned."""
    traced, edits = workspace.traced, workspace.fake_quantizer.edits(workspace.plan(policy))
    return in_batches(traced, lambda inputs: traced.run(inputs, edits), _fixed(traced))


def _fixed(traced: TracedModel) -> int | None:
    """Return the batch size of a trace that takes a single one."""
    return None if traced.dynamic_batch else len(traced.example[0])


def built_engine_runner(workspace: Workspace, threads: int) -> Runner | str:
    """Return how the engine that was built computes a batch, or why it does not run here. It keeps nothing of the
    run.
    """
    traced, backend = workspace.traced, workspace.backend
    engines = {sm: workspace.run.file(name) for sm, name in backend.names.engines.items()}
    opened = backend.open(engines, traced.inputs, workspace.settings.batch, threads)
    return opened if isinstance(opened, str) else engine_runner(traced, opened)


class _EagerRunner:
    """How the user's module computes a batch; one that takes a single size, `fixed`, gets batches that were filled up
    to it.

    Images come in the order in memory that is fastest for convolutions, once a module has shown on a few that it
    computes the same then, and otherwise in that of the task.
    """

    def __init__(self, workspace: Workspace, fixed: int | None) -> None:
        self._traced, self._module, self._fixed = workspace.traced, workspace.original, fixed
        self._filled = in_batches(workspace.traced, self._compute, fixed)
        self._channels_last: bool | None = None

    def __call__(self, batch: Batch) -> Any:
        fits = self._fixed is None or len(batch.inputs[0]) == self._fixed
        return self._compute(batch.inputs) if fits else self._filled(batch)

    def _compute(self, inputs: Sequence[Tensor]) -> Any:
        if self._channels_last is None:
            few = inputs if self._fixed is not None else [tensor[:_FEW] for tensor in inputs]
            self._channels_last = convolves(self._traced) and order_borne_by(self._eager, few) == torch.channels_last
        return self._eager([ordered(each, torch.channels_last) for each in inputs] if self._channels_last else inputs)

    def _eager(self, inputs: Sequence[Tensor]) -> Any:
        return run_eager(self._module, inputs, "the evaluation data")


def engine_runner(traced: TracedModel, engine: OpenEngine) -> EngineRunner:
    """Return how an engine computes a batch."""

    def run(inputs: Sequence[Tensor]) -> Any:
        return as_output(traced, engine.run([tensor.numpy() for tensor in inputs]))

    return EngineRunner(in_batches(traced, run, engine.batch), engine.any_thread)


def in_batches(traced: TracedModel, compute: Callable[[Sequence[Tensor]], Any], size: int | None) -> Runner:
    """Return how a stage that takes batches of `size`, or of any size, computes a batch."""
    spec = traced.out_spec

    def run(batch: Batch) -> Any:
        count = len(batch.inputs[0])
        step = size or count
        if step == count:
            return compute(batch.inputs)
        parts = []
        for start in range(0, count, step):
            parts.append(compute([_padded(tensor[start : start + step], step) for tensor in batch.inputs]))
        columns = zip(*(spec.flatten_up_to(part) for part in parts), strict=True)
        return pytree.tree_unflatten([_joined(column, step, count) for column in columns], spec)

    return run


def _joined(parts: Sequence[Any], step: int, count: int) -> Any:
    first = parts[0]
    if not isinstance(first, Tensor):
        return first
    if all(part.dim() > 0 and len(part) == step for part in parts):
        return torch.cat(list(parts))[:count]
    if all(torch.equal(part, first) for part in parts):
        return first
    raise UserError(
        f"the engine takes batches of {step}, a batch of the evaluation data has {count} samples, and an output of "
        "shape "
        f"{list(first.shape)} does not count samples, so that its parts cannot be joined: let evaluation() give "
        f"batches of {step}"
    )


def _padded(tensor: Tensor, size: int) -> Tensor:
    """Fill up the last, smaller batch of a stage with a fixed batch size; the extra results are cut off."""
    missing = size - len(tensor)
    return tensor if missing == 0 else torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
