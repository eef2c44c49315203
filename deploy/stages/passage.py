"""One stage on its way through the evaluation data, and what it gave so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.data import per_sample
from calib.errors import UserError
from calib.network.agreement import Agreement
from calib.task import Batch, Task
from deploy.files.verification import NORMAL_95, StageName
from deploy.stages.stage_runners import Runner
from smpq.files import Interval

_KEPT_BYTES = 1 << 28
"""Of the module's own outputs so many are kept until the trace has been compared with them."""


class Passage:
    """A stage that computes batch after batch, always in the same order; the batches of two passages are the same as
    far as both have come.

    `outputs` are its first ones, as many as there is room for; empty except for the user's own module. `problem` says
    in words where its outputs are not `reference`; None as long as they are.
    """

    def __init__(self, task: Task, name: StageName, runner: Runner, reference: Sequence[Any] = ()) -> None:
        """Compute nothing yet."""
        self.name, self._task, self._runner = name, task, runner
        self.outputs: list[Any] = []
        self.problem: str | None = None
        self.batches = 0
        self._reference, self._room = reference, _KEPT_BYTES
        self._agreement = Agreement(reference[0]) if reference else None
        self._values: list[Tensor] = []
        self._classes: list[Tensor] = []

    @property
    def values(self) -> Tensor:
        """`[n]`: the metric of each sample so far."""
        return torch.cat(self._values)

    @property
    def classes(self) -> Tensor | None:
        """`[n]`: the top class of each sample so far; None where an output is not `[n, classes]`."""
        return torch.cat(self._classes) if len(self._classes) == self.batches else None

    def go_on(self, batches: Iterable[Batch], advance: Callable[[], None]) -> Passage:
        """Compute more batches; returns itself. UserError where an output holds NaN or infinity."""
        broken, seen = 0, 0
        for batch in batches:
            output, count = self._runner(batch), len(batch.inputs[0])
            leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
            broken, seen = broken + _not_finite(leaves, count), seen + count
            if not broken:
                self._take(output, leaves, batch, count)
            advance()
        if broken:
            cure = "correct the model or the data" if self._of_the_model else "try another format, observer or target"
            raise UserError(
                f"the output of stage {self.name} holds NaN or infinity for {broken} of {seen} samples of the "
                f"evaluation data: {cure}"
            )
        return self

    @property
    def _of_the_model(self) -> bool:
        return self.name in ("eager", "float")

    def _take(self, output: Any, leaves: Sequence[Tensor], batch: Batch, count: int) -> None:
        index, self.batches = self.batches, self.batches + 1
        self._values.append(per_sample(self._task.metric, (output, batch.target), count, "metric"))
        if leaves[0].dim() == 2 and len(leaves[0]) == count:  # class scores
            self._classes.append(leaves[0].argmax(1))
        if self._agreement is not None and index < len(self._reference) and self.problem is None:
            self.problem = self._agreement.difference(output, self._reference[index])
        self._room -= sum(leaf.nbytes for leaf in leaves)
        if self.name == "eager" and self._room >= 0:
            self.outputs.append(output)


def agreement(first: Passage, second: Passage) -> float | None:
    """Return the share of the samples of both with the same top class; None where there are no classes."""
    one, two = first.classes, second.classes
    if one is None or two is None:
        return None
    shared = min(len(one), len(two))
    return float((one[:shared] == two[:shared]).double().mean())


def mean_change(first: Passage, second: Passage) -> tuple[float, Interval]:
    """Return by how much the metric changes from one stage to another, over the samples of both, with its 95 %
    interval.
    """
    before, after = first.values, second.values
    shared = min(len(before), len(after))
    return mean_interval(after[:shared] - before[:shared])


def mean_interval(values: Tensor) -> tuple[float, Interval]:
    """Return the mean of `[n]` values with its 95 % interval."""
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, Interval(mean - NORMAL_95 * error, mean + NORMAL_95 * error)


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
