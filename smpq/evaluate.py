"""The value of a policy: how well the quantised model does on calibration data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.data import per_sample
from calib.errors import UserError
from calib.graph import TracedModel
from calib.task import Batch, Task
from smpq.journal import Journal
from smpq.policy import Policy, Space
from smpq.quantize import FakeQuantizer

VALUES = ("kl", "loss", "metric")
_TOKENS = 3
_SAMPLES_AT_ONCE = 32
"""At least; few enough that the activations of a small network stay in the cache: a third faster than batches of 128 on a CPU."""


def divergence(output: Any, float_output: Any) -> Tensor:
    """Return `[n]`, the KL divergence of each sample's class distribution from the float model's.

    Every floating-point tensor of the output counts; classes are on axis 1, or on the last axis of `[n, tokens, classes]`; further
    positions are averaged. A task whose output holds no class scores defines a `divergence` of its own.
    """
    parts = []
    for ours, reference in zip(pytree.tree_leaves(output), pytree.tree_leaves(float_output), strict=True):
        if not isinstance(ours, Tensor) or not ours.is_floating_point() or ours.dim() < 2:
            continue
        axis = -1 if ours.dim() == _TOKENS else 1
        log_p, log_q = F.log_softmax(reference, axis), F.log_softmax(ours, axis)
        positions = (log_p.exp() * (log_p - log_q)).sum(axis)
        parts.append(positions.reshape(positions.shape[0], -1).mean(1))
    if not parts:
        raise UserError(
            "the model's output holds no class scores [n, classes, ...]: give the task a divergence(output, float_output)"
        )
    return torch.stack(parts).sum(0)


class Evaluator:
    """Evaluates policies, each at most once; higher is better.

    `kl`: minus the mean KL divergence to the float model's output (needs no labels). `loss`: minus the task's mean loss.
    `metric`: the task's mean metric.
    """

    def __init__(
        self,
        fake_quantizer: FakeQuantizer,
        space: Space,
        task: Task,
        batches: Sequence[Batch],
        value: str = "kl",
        journal: Journal | None = None,
        fingerprint: str = "",
    ) -> None:
        """Run the float model once; values already in the journal are not evaluated again."""
        if value not in VALUES:
            raise UserError(f"unknown value {value!r}: choose one of {', '.join(VALUES)}")
        self.space = space
        self.value_name = value
        self.evaluations = 0
        self._fake_quantizer = fake_quantizer
        self._task = task
        self._batches = (
            _split(batches, _samples_at_once(fake_quantizer.traced)) if fake_quantizer.traced.dynamic_batch else list(batches)
        )
        self._divergence = getattr(task, "divergence", divergence)
        self._float_outputs: list[Any] = (
            [fake_quantizer.traced.run(batch.inputs) for batch in self._batches] if value == "kl" else []
        )
        self._journal = journal
        rules = fake_quantizer.rules
        text = f"{fingerprint}|{value}|{rules}|{fake_quantizer.calibration.settings}|{sum(len(b.inputs[0]) for b in batches)}"
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._known: dict[str, float] = journal.read(self._fingerprint) if journal is not None else {}

    def __call__(self, policy: Policy) -> float:
        """Return the value of a policy."""
        key = policy.key()
        if key not in self._known:
            self._known[key] = self._evaluate(policy)
            self.evaluations += 1
            if self._journal is not None:
                self._journal.add(self._fingerprint, key, self._known[key])
        return self._known[key]

    def _evaluate(self, policy: Policy) -> float:
        plan = self._fake_quantizer.plan(policy.by_unit(self.space.groups))
        edits = self._fake_quantizer.edits(plan)
        total, count = 0.0, 0
        for index, batch in enumerate(self._batches):
            output = self._fake_quantizer.traced.run(batch.inputs, edits)
            size = len(batch.inputs[0])
            if self.value_name == "kl":
                samples = -per_sample(self._divergence, (output, self._float_outputs[index]), size, "divergence")
            elif self.value_name == "loss":
                samples = -per_sample(self._task.loss, (output, batch.target), size, "loss")
            else:
                samples = per_sample(self._task.metric, (output, batch.target), size, "metric")
            total += float(samples.sum())
            count += size
        if not math.isfinite(total):
            raise UserError(
                f"the value of the policy {policy.key()[:200]} is not a number: the model's output has NaN or infinity on the calibration data"
            )
        return total / count


def _split(batches: Sequence[Batch], at_once: int) -> list[Batch]:
    """Cut batches into smaller ones where the target can be cut along with the inputs."""
    parts = []
    for batch in batches:
        size = len(batch.inputs[0])
        if not isinstance(batch.target, Tensor) or batch.target.dim() == 0 or len(batch.target) != size:
            parts.append(batch)
            continue
        for start in range(0, size, at_once):
            stop = start + at_once
            parts.append(Batch(tuple(tensor[start:stop] for tensor in batch.inputs), batch.target[start:stop]))
    return parts


def _samples_at_once(traced: TracedModel) -> int:
    """As many as make the activations outweigh the parameters, which are read anew for every part."""
    shapes = [
        node.meta["val"].shape[1:]
        for node in traced.graph.nodes
        if isinstance(node.meta.get("val"), Tensor) and node.op == "call_function"
    ]
    activations = sum(math.prod(int(size) for size in shape) for shape in shapes)
    parameters = sum(tensor.numel() for tensor in traced.state.values())
    return max(_SAMPLES_AT_ONCE, parameters // max(activations, 1))
