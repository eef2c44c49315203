"""Paths through a supernet, one operation of every row: as training draws them, and as policies are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from calib.errors import UserError
from calib.network.fold import Folded
from calib.task import Batch, Task
from smpq.problem.policy import Policy
from smpq.supernet.mixtures import FLOAT
from smpq.supernet.network import Supernet, keys_of, operations_of
from smpq.training.placing import batch_on, repeatable_on
from smpq.value.float_outputs import FloatOutputs
from smpq.value.value import measure_of

_KEPT_BYTES = 256 * 2**20


def draw_path(supernet: Supernet, seed: Sequence[int]) -> None:
    """Let the supernet compute one path, each operation of a row as likely as the others.

    Single-path one-shot training, Guo et al. ECCV 2020 (arXiv 1904.00420), section 3.2.
    """
    generator = np.random.default_rng(seed)
    for key, row in supernet.rows.items():
        supernet.choices[key].chosen = int(generator.integers(len(row)))


def take_path(supernet: Supernet, policy: Policy) -> None:
    """Let the supernet compute the path that is a policy of its space; a layer in a float format stays as it is."""
    for group, chosen in policy.formats.items():
        for key, name in zip(keys_of(group), operations_of(chosen), strict=True):
            names = [operation.name for operation in supernet.rows[key]]
            supernet.choices[key].chosen = FLOAT if chosen.is_float else names.index(name)


def leave_path(supernet: Supernet) -> None:
    """Let the supernet compute the mixture of all operations again."""
    for choice in supernet.choices.values():
        choice.chosen = None


def check_judged(task: Task, batches: Sequence[Batch], value: str, folded: Sequence[Folded]) -> None:
    """Raise UserError where policies cannot be judged so by their paths: for the metric of a task that has none of each
    sample, and for a batch of a single sample, which has no statistics for a BatchNorm.
    """
    measure_of(task, value)
    if folded and any(len(batch.inputs[0]) < 2 for batch in batches):
        raise UserError(
            "paths of a supernet with BatchNorm need calibration batches of two samples or more: leave out the last "
            "one, or give batches of another size"
        )


class PathValue:
    """Values of policies by their paths through a trained supernet, higher is better: a `smpq.value.value.Compute`.

    `value` is what it is for `smpq.value.value.PolicyValue`: kl, loss or metric.

    BatchNorm uses the statistics of each batch. Its own ones are means over all paths and fit none of them: with these
    ResNet-20 was worse with 4 bits everywhere than with 2.
    """

    together = 1
    folds = 1

    def __init__(self, supernet: Supernet, batches: Sequence[Batch], value: str = "kl") -> None:
        """`batches` were not trained on. UserError as `check_judged`."""
        check_judged(supernet.subject.task, batches, value, supernet.subject.folded)
        self._supernet, self._value_name = supernet, value
        self._measure = measure_of(supernet.subject.task, value)
        self._float_outputs = FloatOutputs(lambda batch: supernet.graph.reference(batch.inputs), _KEPT_BYTES)
        self._batches = [batch_on(batch, supernet.graph.device) for batch in batches]
        sizes = [len(batch.inputs[0]) for batch in batches]
        self.identity = f"path|{value}|{sizes}|{supernet.graph.device}|{_digest(supernet)}"

    def __call__(self, policies: Sequence[Policy]) -> Iterator[tuple[int, float]]:
        """Yield (index, value) of every policy."""
        for index, policy in enumerate(policies):
            yield index, self._value(policy)

    def fold(self, number: int) -> PathValue:
        """Return the value itself: all samples are one part."""
        del number
        return self

    def whole(self, parts: Sequence[float]) -> float:
        """Return the value of the one part."""
        (only,) = parts
        return only

    def _value(self, policy: Policy) -> float:
        graph, total, count = self._supernet.graph, 0.0, 0
        take_path(self._supernet, policy)
        try:
            with repeatable_on(graph.device), torch.no_grad(), graph.batch_statistics():
                for batch in self._batches:
                    float_output = self._float_outputs(batch) if self._value_name == "kl" else None
                    total += float(self._measure(graph.run(batch.inputs), float_output, batch).sum())
                    count += len(batch.inputs[0])
        finally:
            leave_path(self._supernet)
        if not math.isfinite(total):
            raise UserError("the supernet's value of a policy is not a number: train it with a smaller learning rate")
        return total / count


def _digest(supernet: Supernet) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(supernet.graph.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
