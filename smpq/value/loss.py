"""What a policy loses on held-out samples, with the interval that decides about a budget on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calib.errors import UserError
from calib.network.execution import NO_EDITS
from calib.task import Batch, Task
from smpq.files import SHARES
from smpq.problem.policy import Policy, Space
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.incremental import outputs_of
from smpq.value.journal import Journal
from smpq.value.value import measure_of, samples_at_once, split

_NORMAL_95 = 1.96
_EARLY = 3.5
"""Standard errors of a verdict before all samples are seen. It is looked for after each batch, hence more than 1.96."""
_FEWEST_EARLY = 256
_PARTS = ("mean", "standard_error", "samples", "complete")
"""Of a loss, as the journal keeps it."""


@dataclass(frozen=True)
class Loss:
    """What a policy loses against the float model in the mean of `samples`, paired, in the unit of the limit.

    `standard_error` is that of the mean. `complete` is False where the verdict was clear before all samples were seen.
    """

    mean: float
    standard_error: float
    samples: int
    complete: bool = True

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        return self.mean - _NORMAL_95 * self.standard_error, self.mean + _NORMAL_95 * self.standard_error

    def within(self, limit: float) -> bool:
        """Whether the upper end of the interval is within the limit."""
        return self.interval[1] <= limit

    def samples_needed(self, limit: float) -> int | None:
        """How many samples would show that this mean is within the limit; None where it is not."""
        if self.mean >= limit:
            return None
        deviation = self.standard_error * math.sqrt(self.samples)
        return math.ceil((_NORMAL_95 * deviation / (limit - self.mean)) ** 2)


def loss_of(differences: Tensor, largest: float = 0.0, *, complete: bool = True) -> Loss:
    """Return the mean of paired differences `[n]` with its standard error.

    The error is that of the adjusted Wald interval for paired proportions (Bonett and Price 2012): two samples more,
    one that loses and one that gains as much as one sample can (`largest`), or as the largest difference seen, or 1
    where none is. Few samples without a change do not show that there are none. For metrics that are no shares the same
    rule is ours.
    """
    count = len(differences)
    values = differences.double()
    most = max(float(values.abs().max()), largest) or 1.0
    mean = float(values.mean())
    wider = torch.cat([values, values.new_tensor([most, -most])])
    error = float(wider.std(correction=0)) / math.sqrt(count + 2)
    return Loss(mean, error, count, complete)


def point_of(task: Task) -> float:
    """Return how much of a task's metric is one point: `metric_point` of the task, or 0.01 for shares and 1 else."""
    found = getattr(task, "metric_point", None)
    if found is None:
        return 0.01 if task.metric_name in SHARES else 1.0
    if not isinstance(found, (int, float)) or not 0 < found < math.inf:
        raise UserError(f"the task's metric_point is {found!r}: it must be a number above zero")
    return float(found)


class PolicyLoss:
    """Losses of policies on held-out batches, each worked out once; the run's journal keeps them.

    `kind` is `drop`, the fall of the task's metric in points, or `kl`, the divergence from the float model's output in
    nats, which needs no targets. Batches are evaluated one after the other until the verdict about `limit` is clear.
    """

    def __init__(
        self,
        fake_quantizer: FakeQuantizer,
        space: Space,
        task: Task,
        batches: Sequence[Batch],
        kind: str,
        journal: Journal | None = None,
        fingerprint: str = "",
        memory_mb: float | None = None,
    ) -> None:
        """Keep everything; the float model runs on first use."""
        self._fake = fake_quantizer
        self._space = space
        self._kl = kind == "kl"
        traced = fake_quantizer.traced
        self._batches = split(batches, samples_at_once(fake_quantizer, memory_mb)) if traced.dynamic_batch else batches
        self._measure = measure_of(task, "kl" if self._kl else "metric")
        self._point = 1.0 if self._kl else point_of(task)
        # a sample that turns wrong loses all of a share
        self._largest = 1.0 / self._point if not self._kl and task.metric_name in SHARES else 0.0
        self._float: list[Any] = []
        self._journal = journal
        self._fingerprint = f"{fingerprint}|{kind}"
        self._known: dict[tuple[str, float], Loss] = {}

    def float_metric(self) -> float:
        """Return the float model's mean metric in points; zero for the divergence."""
        if self._kl:
            return 0.0
        return float(torch.cat([self._reference(index) for index in range(len(self._batches))]).mean()) / self._point

    def __call__(self, policy: Policy, limit: float) -> Loss:
        """Return what a policy loses, as exactly as the verdict about `limit` needs."""
        key = policy.key(), limit
        if key not in self._known:
            self._known[key] = self._read(*key) or self._evaluate(policy, limit)
        return self._known[key]

    def _evaluate(self, policy: Policy, limit: float) -> Loss:
        fake, parts = self._fake, []
        edits = [fake.edits(fake.plan(policy.by_unit(self._space.groups), policy.float_joins))]
        if edits == [NO_EDITS]:  # the float model itself, whatever the samples are
            return Loss(0.0, 0.0, sum(len(batch.inputs[0]) for batch in self._batches))
        found, seen = None, 0
        for index, batch in enumerate(self._batches):
            ((_, output),) = outputs_of(fake.traced, batch.inputs, edits)
            parts.append(self._lost(index, batch, output))
            seen += len(batch.inputs[0])
            complete = index + 1 == len(self._batches)
            if seen < _FEWEST_EARLY and not complete:
                continue
            found = loss_of(torch.cat(parts), self._largest, complete=complete)
            if abs(found.mean - limit) > _EARLY * found.standard_error:
                break
        assert found is not None
        if not math.isfinite(found.mean):
            raise UserError(f"the loss of the policy {policy.key()[:200]} is not a number on the held-out data")
        self._write(policy.key(), limit, found)
        return found

    def _lost(self, index: int, batch: Batch, output: Any) -> Tensor:
        """Return `[n]`, what each sample loses."""
        if self._kl:
            return -self._measure(output, self._float_output(index), batch)
        values = self._measure(output, None, batch)
        return (self._reference(index) - values.double()) / self._point

    def _reference(self, index: int) -> Tensor:
        """Return `[n]`, the float model's metric on one batch."""
        while len(self._float) <= index:
            batch = self._batches[len(self._float)]
            self._float.append(self._measure(self._fake.traced.run(batch.inputs), None, batch).double())
        found: Tensor = self._float[index]
        return found

    def _float_output(self, index: int) -> Any:
        """Run the float model anew: the outputs of all batches may not fit into memory."""
        return self._fake.traced.run(self._batches[index].inputs)

    def _read(self, key: str, limit: float) -> Loss | None:
        if self._journal is None:
            return None
        found = [self._journal.read(f"{self._fingerprint}|{limit!r}|{part}").get(key) for part in _PARTS]
        if any(value is None for value in found):
            return None
        mean, error, samples, complete = (float(value or 0.0) for value in found)
        return Loss(mean, error, int(samples), bool(complete))

    def _write(self, key: str, limit: float, found: Loss) -> None:
        if self._journal is None:
            return
        for part in _PARTS:
            name = f"{self._fingerprint}|{limit!r}|{part}"
            if key not in self._journal.read(name):  # a kill may have left some of them
                self._journal.add(name, key, float(getattr(found, part)))
