"""The value of policies: how well the quantised model does on calibration data."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from calib.data import per_sample
from calib.errors import UserError
from calib.network.order import fastest_order
from calib.task import Batch, Task
from smpq.choices import VALUES
from smpq.problem.policy import Policy, Space
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.divergence import TaskDivergence
from smpq.value.float_outputs import FloatOutputs
from smpq.value.incremental import bytes_per_sample, output_bytes_per_sample, outputs_of
from smpq.value.metric import sample_metric
from smpq.value.parts import in_folds, samples_at_once, split

_FOLDS = 8
_FEWEST_IN_A_FOLD = 64
_KEPT_MB = 256.0
TOGETHER = 32
"""Policies that are evaluated at once: enough to share most of their computations, few enough that a kill loses
little.
"""


class Compute(Protocol):
    """Works out values of policies, remembering nothing: in this process or in others."""

    identity: str
    """Says what the values depend on besides model, data and policy."""

    together: int
    """Best batch size for `__call__`, in policies."""

    folds: int
    """How many parts the samples have; 1 where a part would say too little."""

    def __call__(self, policies: Sequence[Policy]) -> Iterable[tuple[int, float]]:
        """Yield (index, value) of every policy, in the order in which they are finished."""
        ...

    def fold(self, number: int) -> Compute:
        """Return the same value on one part of the samples."""
        ...

    def whole(self, parts: Sequence[float]) -> float:
        """Return the value on all samples, given that on each part; the same number as `__call__` gives."""
        ...


class PolicyValue:
    """Values of policies by running the fake-quantised model; higher is better.

    `kl`: minus the mean KL divergence to the float model's output (needs no labels). `loss`: minus the task's mean
    loss. `metric`: the task's mean metric. Policies that are asked for together share their computations, batch by
    batch (`smpq.value.incremental`); `memory_mb` bounds what their activations take, and the float model's outputs that
    are kept, 256 MB without it; others are computed anew. `fold` is the same value on one of
    `folds` parts of the samples, of 64 samples or more: enough to rank most policies. A share of 0 and 1 needs them
    all, so `metric` has one part. A pickled copy gives the same values for policies of the space. `device` is where a
    copy is to be loaded (`smpq.value.workers.process.placed`); the object that is made here computes where its tensors
    are.
    """

    together = TOGETHER

    def __init__(
        self,
        fake_quantizer: FakeQuantizer,
        space: Space,
        task: Task,
        batches: Sequence[Batch],
        value: str = "kl",
        memory_mb: float | None = None,
        device: str = "cpu",
    ) -> None:
        """Keep everything; the float model runs on first use. UserError for an unknown value, or a limit too small for
        one sample.
        """
        if value not in VALUES:
            raise UserError(f"unknown value {value!r}: choose one of {', '.join(VALUES)}")
        self.space = space
        self.value_name = value
        self._fake_quantizer = fake_quantizer
        traced = fake_quantizer.traced
        self._samples = measure_of(task, value)
        self._most_kept = min(_KEPT_MB, _KEPT_MB if memory_mb is None else memory_mb) * 2**20
        count = sum(len(batch.inputs[0]) for batch in batches)
        self.folds = 1 if value == "metric" else max(1, min(_FOLDS, count // _FEWEST_IN_A_FOLD))
        at_once = min(samples_at_once(fake_quantizer, memory_mb, device), math.ceil(count / self.folds))
        parts = split(batches, at_once) if traced.dynamic_batch else list(batches)
        self.folds = min(self.folds, len(parts))
        self._batches, self._fold_of = in_folds(parts, self.folds)
        self._parts: dict[int, PolicyValue] = {}
        # the last digits of a value depend on how large the parts are
        sizes = {len(part.inputs[0]) for part in parts}
        self.identity = f"{value}|{fake_quantizer.rules}|{fake_quantizer.calibration.settings}|{count}|{max(sizes)}"
        if self.folds > 1 and len(sizes) > 1:
            self.identity += "|equal folds"
        self.device = device
        if device != "cpu":  # the last digits are others there
            self.identity += "|gpu"
        few = [tensor[:2] if traced.dynamic_batch else tensor for tensor in self._batches[0].inputs]
        # not the order itself, which torch cannot save
        self._channels_last = device == "cpu" and fastest_order(traced, few) == torch.channels_last
        if self._channels_last:  # and here
            self.identity += "|channels last"

    @property
    def _order(self) -> torch.memory_format:
        return torch.channels_last if self._channels_last else torch.contiguous_format

    @cached_property
    def _float_outputs(self) -> FloatOutputs:
        run = self._fake_quantizer.traced.run
        return FloatOutputs(lambda batch: run(batch.inputs, order=self._order), self._most_kept)

    def fold(self, number: int) -> PolicyValue:
        """Return the same value on one part of the samples."""
        if number not in self._parts:
            part = object.__new__(type(self))  # `copy` would take what a copy in another process needs
            _ = self._float_outputs  # what is kept is kept for all
            own = [batch for batch, fold in zip(self._batches, self._fold_of, strict=True) if fold == number]
            part.__dict__.update(self.__dict__, _batches=own, _fold_of=[0] * len(own), folds=1, _parts={})
            part.__dict__.pop("_counts", None)
            part.identity += f"|fold {number} of {self.folds}"
            self._parts[number] = part
        return self._parts[number]

    def whole(self, parts: Sequence[float]) -> float:
        """Return the value on all samples, given that on each part."""
        if len(parts) == 1:
            return parts[0]
        return sum(part * count for part, count in zip(parts, self._counts, strict=True)) / sum(self._counts)

    @cached_property
    def _counts(self) -> list[int]:
        """Samples of each part."""
        counts = [0] * self.folds
        for batch, fold in zip(self._batches, self._fold_of, strict=True):
            counts[fold] += len(batch.inputs[0])
        return counts

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process needs: nothing of the calibration data that is not evaluated on, and no more
        of the task.
        """
        self._fake_quantizer.prepare(
            {unit.path: self.space.formats[group.name] for group in self.space.groups for unit in group.units}
        )
        state = {name: part for name, part in self.__dict__.items() if name != "_float_outputs"}
        state["_parts"] = {}
        if not self._samples.takes_target:
            state["_batches"] = [Batch(batch.inputs, None) for batch in self._batches]
        return state

    @property
    def bytes_of_a_copy(self) -> int:
        """About how much memory a copy in another process takes: the float network, each layer's weight in every
        format, what activations may take, and the float outputs that are kept.
        """
        fake = self._fake_quantizer
        numel = {unit.path: fake.traced.state[unit.weight].numel() for unit in fake.units}
        weights = sum(
            numel[unit.path] * len(self.space.formats[group.name])
            for group in self.space.groups
            for unit in group.units
        )
        floats = sum(tensor.numel() * tensor.element_size() for tensor in fake.traced.state.values())
        samples = [len(batch.inputs[0]) for batch in self._batches]
        outputs = sum(samples) * output_bytes_per_sample(fake.traced) if self.value_name == "kl" else 0
        activations = max(samples) * bytes_per_sample(fake.traced, fake.units)
        return floats + 4 * weights + activations + int(min(outputs, self._most_kept))

    def seconds_of_a_run(self) -> float:
        """Return how long the float network takes on the samples that most policies are judged on."""
        start = time.perf_counter()
        with torch.no_grad():
            for batch, fold in zip(self._batches, self._fold_of, strict=True):
                if fold == 0:
                    self._fake_quantizer.traced.run(batch.inputs, order=self._order)
        return time.perf_counter() - start

    @property
    def steps(self) -> int:
        """How many steps the network has."""
        return len(self._fake_quantizer.traced.steps)

    def steps_behind(self) -> dict[str, int]:
        """Return for each group how many steps run anew when its format changes."""
        position = {node.name: number for number, node in enumerate(self._fake_quantizer.traced.steps)}
        firsts = {
            group.name: min(position[call] for unit in group.units for call in unit.uses) for group in self.space.groups
        }
        return {name: self.steps - first for name, first in firsts.items()}

    def __call__(self, policies: Sequence[Policy]) -> list[tuple[int, float]]:
        """Return (index, value) of every policy. UserError when a value is not a number."""
        if self.device == "cpu":
            return self._values(policies)
        # TF32 has ten bits of mantissa: its convolutions would differ in the third digit from those of a CPU
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._values(policies)

    def _values(self, policies: Sequence[Policy]) -> list[tuple[int, float]]:
        fake = self._fake_quantizer
        edits = [fake.edits(fake.plan(policy.by_unit(self.space.groups), policy.float_joins)) for policy in policies]
        totals = [[0.0] * self.folds for _ in policies]
        for batch, fold in zip(self._batches, self._fold_of, strict=True):
            float_output = self._float_outputs(batch) if self.value_name == "kl" else None
            for index, output in outputs_of(fake.traced, batch.inputs, edits, self._order):
                totals[index][fold] += float(self._samples(output, float_output, batch).sum())
        for policy, row in zip(policies, totals, strict=True):
            if not math.isfinite(sum(row)):
                raise UserError(
                    f"the value of the policy {policy.key()[:200]} is not a number: the model's output has NaN or "
                    "infinity on the calibration data"
                )
        return [(index, self.whole(list(map(operator.truediv, row, self._counts)))) for index, row in enumerate(totals)]


class _Measure:
    """One value per sample, higher is better; a class, so that it can be sent to another process with its task."""

    def __init__(self, name: str, function: Callable[..., Tensor]) -> None:
        self._name = name
        self._function = function

    @property
    def takes_target(self) -> bool:
        """Whether it depends on the target of a batch."""
        return not isinstance(self._function, TaskDivergence) or self._function.takes_target

    def __call__(self, output: Any, float_output: Any, batch: Batch) -> Tensor:
        size = len(batch.inputs[0])
        if self._name == "divergence":
            return -per_sample(self._function, (output, float_output, batch.target), size, self._name)
        values = per_sample(self._function, (output, batch.target), size, self._name)
        return -values if self._name == "loss" else values


def measure_of(task: Task, value: str) -> _Measure:
    """Return what is computed of each sample: all that a value function needs of its task. UserError for the metric of
    a task that has none of each sample.
    """
    if value == "kl":
        return _Measure("divergence", TaskDivergence(task))
    if value == "loss":
        return _Measure("loss", task.loss)
    return _Measure("metric", sample_metric(task, "the value metric"))
