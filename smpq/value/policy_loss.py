"""What policies lose on held-out samples, until the verdict about a budget on it is clear."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch

from calib.batches import samples_in
from calib.errors import UserError
from calib.network.execution import NO_EDITS, Edits
from calib.network.graph import TracedModel
from calib.task import Batch, Task
from smpq.files import SHARES
from smpq.problem.policy import Policy, Space
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.collected import Collected, MeanCollected
from smpq.value.incremental import outputs_of
from smpq.value.journal import Journal
from smpq.value.loss import Loss, stated_point
from smpq.value.metric import collected
from smpq.value.parts import samples_at_once, split
from smpq.value.resampling import RESAMPLES, UndefinedError
from smpq.value.value import measure_of

_EARLY = 3.5
"""Standard errors of a verdict before all samples are seen. It is looked for after each batch, hence more than 1.96."""
_FEWEST_EARLY = 256
_PARTS = ("mean", "standard_error", "samples", "complete")
"""Of a loss, as the journal keeps it."""


class PolicyLoss:
    """Losses of policies on held-out batches, each worked out once; the run's journal keeps them.

    `kind` is `drop`, the fall of the task's metric in points, or `kl`, the divergence from the float model's output in
    nats, which needs no targets. Batches are evaluated one after the other until the verdict about `limit` is clear;
    a metric of all samples together is judged on all.
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
        self._batches, self._samples = batches, samples_in(batches)
        self._at_once = samples_at_once(fake_quantizer, memory_mb) if traced.dynamic_batch else None
        self._task = task
        self._float = self._nothing()
        self._journal = journal
        self._kind = f"{fingerprint}|{kind}"
        if not self._float.early:
            self._kind += f" of all samples|{RESAMPLES}"
        self._known: dict[tuple[str, float], Loss] = {}

    def _nothing(self) -> Collected:
        """Return what is to keep a model's outputs: their metric, or minus their divergence from the float model's."""
        if not self._kl:
            return collected(self._task)
        measure, traced = measure_of(self._task, "kl"), self._fake.traced
        # the float model runs anew for each policy: its outputs on all batches may not fit into memory
        return MeanCollected(lambda output, batch: measure(output, traced.run(batch.inputs), batch))

    @cached_property
    def _is_share(self) -> bool:
        """Whether the metric is a share."""
        if self._kl:
            return False
        if self._task.metric_name in SHARES or stated_point(self._task) is not None:
            return self._task.metric_name in SHARES
        self._run_float_on_all()
        return self._float.is_share

    @property
    def _largest(self) -> float:
        """How much of the metric a sample can lose, by what is known of the float model so far."""
        if self._kl:
            return 0.0
        return 1.0 if self._task.metric_name in SHARES else self._float.largest

    @cached_property
    def point(self) -> float:
        """How much of the metric is a point: what the task says, else 0.01 where the metric is a share, and 1 else."""
        if self._kl:
            return 1.0
        return stated_point(self._task) or (0.01 if self._is_share else 1.0)

    def float_metric(self) -> float:
        """Return the float model's metric in points; zero for the divergence."""
        if self._kl:
            return 0.0
        self._run_float_on_all()
        return self._float.value / self.point

    def doubt(self) -> str | None:
        """Say why these batches cannot tell how sure a loss in the metric is; None where they can."""
        self._run_float_on_all()
        try:
            self._float.figure()
        except UndefinedError as error:
            return str(error)
        return self._float.doubt()

    def __call__(self, policy: Policy, limit: float) -> Loss:
        """Return what a policy loses, as exactly as the verdict about `limit` needs."""
        key = policy.key(), limit
        if key not in self._known:
            self._known[key] = self._read(*key) or self._evaluate(policy, limit)
        return self._known[key]

    def of_tuned(self, traced: TracedModel, edits: Edits, key: str, limit: float) -> Loss:
        """Return what a policy loses whose weights were tuned: `edits` of `traced` simulate it. `key` names both."""
        if (key, limit) not in self._known:
            self._known[key, limit] = self._read(key, limit) or self._judge(traced, edits, key, limit)
        return self._known[key, limit]

    def _evaluate(self, policy: Policy, limit: float) -> Loss:
        fake = self._fake
        edits = fake.edits(fake.plan(policy.by_unit(self._space.groups), policy.float_joins))
        if edits == NO_EDITS:  # the float model itself, whatever the samples are
            return Loss(0.0, 0.0, self._samples)
        return self._judge(fake.traced, edits, policy.key(), limit)

    def _judge(self, traced: TracedModel, edits: Edits, key: str, limit: float) -> Loss:
        found, lost = self._nothing(), None
        for index, batch in enumerate(self._parts()):
            ((_, output),) = outputs_of(traced, batch.inputs, [edits])
            self._run_float(index, batch)
            found.take(index, output, batch)
            complete = found.samples == self._samples
            if not complete and (not found.early or found.samples < _FEWEST_EARLY):
                continue
            lost = self._float.loss_to(found, self.point, self._largest / self.point, complete=complete)
            if abs(lost.mean - limit) > _EARLY * lost.standard_error:
                break
        assert lost is not None
        if not math.isfinite(lost.mean):
            raise UserError(f"the loss of the policy {key[:200]} is not a number on the held-out data")
        self._write(key, limit, lost)
        return lost

    def _parts(self) -> Iterator[Batch]:
        """Yield the batches, cut into what is computed at once."""
        for batch in self._batches:
            yield from split([batch], self._at_once) if self._at_once is not None else [batch]

    def _run_float_on_all(self) -> None:
        if self._float.samples < self._samples:
            for index, batch in enumerate(self._parts()):
                self._run_float(index, batch)

    def _run_float(self, index: int, batch: Batch) -> None:
        """Run the float model on a batch, unless that was done; the batches come in their order."""
        if index < self._float.batches:
            return
        if isinstance(self._float, MeanCollected) and self._kl:
            self._float.add(index, torch.zeros(len(batch.inputs[0]), dtype=torch.float64))
        else:
            self._float.take(index, self._fake.traced.run(batch.inputs), batch)

    @cached_property
    def _fingerprint(self) -> str:
        return f"{self._kind}|a point is {self.point!r}"

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
