"""One stage on its way through the evaluation data, and what it gave so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.errors import UserError
from calib.finite import all_finite
from calib.network.agreement import Agreement
from calib.task import Batch, Task
from deploy.files.verification import Confidence, Quantiles, StageName
from deploy.stages.confidences import confidences, scores_classes
from deploy.stages.stage_runners import EngineRunner, Runner
from smpq.value.collected import mean_of
from smpq.value.column import Column
from smpq.value.metric import collected


class Passage:
    """A stage that computes batch after batch of the evaluation data, and keeps nothing that is large.

    `problem` says in words where its outputs are not those of `reference`; None as long as they are. `found` is what
    the task's metric keeps, `classes` the top class of each sample, `confidences` how sure it is of it.
    """

    def __init__(self, task: Task, name: StageName, runner: Runner, reference: Runner | None = None) -> None:
        """Compute nothing yet."""
        self.name, self.found, self._task = name, collected(task), task
        self.problem: str | None = None
        self.classes, self.confidences = Column(torch.int64), Column(torch.float64)
        self._runner, self._reference = runner, reference
        self._agreement: Agreement | None = None
        self._broken = self._seen = 0

    @property
    def any_thread(self) -> bool:
        """Whether another thread may `compute`."""
        return isinstance(self._runner, EngineRunner) and self._runner.any_thread

    def compute(self, batch: Batch) -> Any:
        """Return what the stage gives for a batch."""
        return self._runner(batch)

    def take(self, number: int, batch: Batch, output: Any) -> None:
        """Keep what is wanted of the output for one more batch."""
        count = len(batch.inputs[0])
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        self._broken, self._seen = self._broken + _not_finite(leaves, count), self._seen + count
        if self._broken:
            return
        self.found.take(number, output, batch)
        if scores_classes(leaves[0], count):
            self.classes.add(number, leaves[0].argmax(1))
        sure = confidences(self._task, output, batch)
        if sure is not None:
            self.confidences.add(number, sure)
        if self._reference is not None and self.problem is None:
            expected = self._reference(batch)
            self._agreement = self._agreement or Agreement(expected)
            self.problem = self._agreement.difference(output, expected)

    def check(self) -> None:
        """Raise UserError where an output held NaN or infinity."""
        if not self._broken:
            return
        of_the_model = self.name in ("eager", "float")
        cure = "correct the model or the data" if of_the_model else "try another format, observer or target"
        raise UserError(
            f"the output of stage {self.name} holds NaN or infinity for {self._broken} of {self._seen} samples of the "
            f"evaluation data: {cure}"
        )


def go_on(
    passages: Sequence[Passage], batches: Iterable[tuple[int, Batch]], advance: Callable[[], None]
) -> Sequence[Passage]:
    """Let all stages compute the same numbered batches; returns them. UserError where an output holds NaN or
    infinity.

    Engines compute while PyTorch does, where that has one thread: on a machine that others use too, two threads get
    twice what one gets. PyTorch itself computes one stage after the other, in this thread: a module of the user's may
    keep what it works on in its attributes.
    """
    beside = torch.get_num_threads() == 1 and len(passages) > 1
    with ThreadPoolExecutor(1) as other:
        for number, batch in batches:
            early = {each.name: other.submit(each.compute, batch) for each in passages if beside and each.any_thread}
            _take_all(passages, number, batch, early, advance)
            del batch, early  # before the next batch is made
    for passage in passages:
        passage.check()
    return passages


def _take_all(
    passages: Sequence[Passage],
    number: int,
    batch: Batch,
    early: Mapping[StageName, Future[Any]],
    advance: Callable[[], None],
) -> None:
    """Let the stages take what they compute for a batch; those of `early` are computing already, and come last."""
    for passage in sorted(passages, key=lambda each: each.name in early):
        output = early[passage.name].result() if passage.name in early else passage.compute(batch)
        passage.take(number, batch, output)
        advance()


def agreement(first: Passage, second: Passage) -> float | None:
    """Return the share of the samples of both with the same top class; None where there are no classes."""
    if any(len(stage.classes.sizes) < stage.found.batches for stage in (first, second)):
        return None
    shared = first.classes.shared(second.classes)
    return float((first.classes.of(shared) == second.classes.of(shared)).double().mean())


def moved(first: Passage, last: Passage) -> Confidence | None:
    """Return how the confidences of two stages with the same batches differ; None where there are none."""
    numbers = first.confidences.shared(last.confidences)
    if len(numbers) < first.found.batches:
        return None
    before, after = first.confidences.of(numbers), last.confidences.of(numbers)
    change = mean_of(after - before)
    return Confidence(first=_quantiles(before), last=_quantiles(after), change=change.value, interval=change.interval)


def _quantiles(values: Tensor) -> Quantiles:
    low, median, high = np.quantile(values.numpy(), (0.05, 0.5, 0.95)).tolist()
    return Quantiles(low=low, median=median, high=high)


def _not_finite(leaves: Sequence[Tensor], count: int) -> int:
    """Return how many samples of a batch have a value that is not finite; all of them where an output does not count
    samples.
    """
    found = torch.zeros(count, dtype=torch.bool)
    for leaf in leaves:
        if not all_finite(leaf):
            odd = ~torch.isfinite(leaf)
            found |= odd.reshape(count, -1).any(1) if leaf.dim() and len(leaf) == count else odd.any()
    return int(found.sum())
