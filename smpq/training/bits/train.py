"""Train a network whose layers lose bits until a budget is met, and then the weights of what was found."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calib.batches import training_content
from calib.errors import UserError
from calib.network.fold import Folded
from calib.network.graph import TracedModel
from calib.task import Batch, Task
from smpq.problem.policy import Policy, Space
from smpq.quantized.quantize import FakeQuantizer
from smpq.solve.allocate import Ceiling
from smpq.training.bits.finder import Finder
from smpq.training.bits.ladder import highest
from smpq.training.bits.rungs import Rungs
from smpq.training.bits.settings import BitSettings
from smpq.training.bits.state import TrainingState, tensors_of
from smpq.training.finetune import TrainingProgress, weights_of
from smpq.training.finetuned import FineTunedWeights, Judged
from smpq.training.judge import Judge
from smpq.training.loop import Loop, epoch_length, passes, some_inputs
from smpq.training.placing import CPU, repeatable_on
from smpq.training.plan import Activation, attach_plan
from smpq.training.settings import FineTuneSettings
from smpq.training.trainable import TrainableGraph

_REPORT_EVERY = 20
_ADJUSTMENTS = 40
"""At least, in a search that is long enough."""


@dataclass(frozen=True)
class BitSubject:
    """What is trained, and within which limits. `fingerprint` stands for the model and the data."""

    task: Task
    traced: TracedModel
    original: Any
    folded: tuple[Folded, ...]
    space: Space
    ceilings: tuple[Ceiling, ...]
    fake: FakeQuantizer
    batches: Sequence[Batch]
    fingerprint: str


@dataclass(frozen=True)
class Found:
    """What a training found: the policy and its weights, and in words how it was found."""

    policy: Policy
    weights: FineTunedWeights
    notes: tuple[str, ...]


def train_bits(
    subject: BitSubject,
    make: Callable[[Rungs], Finder],
    kind: type[Finder],
    how: FineTuneSettings,
    bits: BitSettings,
    path: Path,
    report: Callable[[TrainingProgress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    device: str = CPU,
) -> Found:
    """Find a policy within the ceilings, and train its weights. `make` makes the finder, of class `kind`.

    Writes the state after every epoch to `path`, and goes on from there. `Impossible` when no policy is within the
    ceilings; UserError when there is nothing to choose, no training data, or no finite loss.
    """
    if not subject.ceilings:
        raise UserError("the bits are found for a budget: give limits on size, avg_bits or bops")
    with repeatable_on(device), torch.enable_grad():  # whatever the caller has switched off
        return _Training(subject, make, kind, how, bits, path, report, say, device).run()


class _Training:
    def __init__(
        self,
        subject: BitSubject,
        make: Callable[[Rungs], Finder],
        kind: type[Finder],
        how: FineTuneSettings,
        bits: BitSettings,
        path: Path,
        report: Callable[[TrainingProgress], None],
        say: Callable[[str], None],
        device: str,
    ) -> None:
        self.subject, self.how, self.bits, self.path, self.report, self.say = subject, how, bits, path, report, say
        space = subject.space
        self.ladders = kind.ladders(space, subject.ceilings)
        plan = subject.fake.plan(highest(self.ladders).by_unit(space.groups))
        self.graph = TrainableGraph(subject.traced, space.units, subject.original, subject.folded, device)
        learn = kind.LEARNS if how.learn_activations is None else how.learn_activations
        self.activations: dict[tuple[str, int], Activation] = attach_plan(
            self.graph, plan, learn, how.start, kind.QUANTIZER, kind.ACTIVATION
        )
        self.judge = Judge(subject.task, self.graph, subject.batches, how.value)
        self.rungs = Rungs(self.graph, space, self.ladders, subject.ceilings)
        self.length = epoch_length(subject.task, self.graph, how.seed)
        self.total = how.steps or max(round(how.epochs * self.length), 1)
        self.last = max(1, round(bits.search * self.total))
        self.interval = max(1, min(bits.interval, self.last // _ADJUSTMENTS))
        self.loop = Loop(self.graph, subject.task, how, self.total)
        self.key = self._key(kind)
        self.done, self.searching, self.seconds = 0, kind.SEARCHES, 0.0
        self.history: list[dict[str, float]] = []
        self.before: Judged
        if path.is_file():
            state = TrainingState.load(path, self.key)
            self.finder = make(self.rungs)
            self._restore(state)
        else:
            self.before = self.judge()
            self.finder = make(self.rungs)

    def run(self) -> Found:
        self.began = time.monotonic()
        since: list[float] = []
        self.graph.train()
        batches = passes(self.subject.task, self.graph, self.how.seed, self.done // self.length)
        for batch in itertools.islice(batches, self.total - self.done):
            if self.searching:
                self.finder.begin(self.done, self.done / self.last)
            since.append(self.loop.step(self.done, batch, self._besides))
            self.done += 1
            if self.searching:
                self._search()
            whole = self.done % self.length == 0
            if self.done % _REPORT_EVERY == 0 or self.done == self.total or whole:
                self.history.append({"step": self.done, "loss": sum(since) / len(since)})
                self.report(TrainingProgress(self.done, self.total, self.history[-1]["loss"]))
                since.clear()
            if whole and self.done < self.total:
                self._state().save(self.path)
        return self._found()

    def _besides(self) -> Tensor | None:
        return None if self.searching else self.finder.refine()

    def _search(self) -> None:
        finder, rungs, done = self.finder, self.rungs, self.done / self.last
        finder.after(self.loop.rate)
        if self.done % self.interval == 0:
            finder.adjust(done)
            if int(10 * done) > int(10 * (self.done - self.interval) / self.last):
                self.say(f"step {self.done}: {rungs.excess:.3f} times the limit, {_brief(finder.to_json())}")
        if not rungs.met and self.done < self.last:
            return
        forced = 0
        while not rungs.met:
            finder.force()
            forced += 1
        returned = rungs.fill()
        finder.settle()
        self.searching = False
        average = [f"{ceiling.model.name} {ceiling.model.total(rungs.policy):.6g}" for ceiling in rungs.ceilings]
        self.say(
            f"the bits are found after {self.done} steps: {', '.join(average)}; {len(rungs.lowered)} widths taken "
            f"away, {forced} of them by force, {returned} given back"
        )

    def _found(self) -> Found:
        task, graph, how = self.subject.task, self.graph, self.how
        graph.estimate_statistics(some_inputs(task, graph, how.seed))
        after = self.judge()
        policy, rungs = self.rungs.policy, self.rungs
        paths = [unit.path for name in rungs.quantized for unit in rungs.units[name]]
        weights = FineTunedWeights(
            policy.key(),
            self.subject.fingerprint,
            {name: tensor.cpu() for name, tensor in graph.fold().items()},
            weights_of(graph, paths),
            {name: module.quantizer() for name, module in self.activations.items()},
            self.before,
            after,
            "end",
            self._spent(),
            asdict(how) | asdict(self.bits),
            self.history,
        )
        reached = (f"{c.model.name} {c.model.total(policy):.6g} of {c.limit:.6g}" for c in rungs.ceilings)
        brief = _brief(self.finder.to_json())
        return Found(policy, weights, (", ".join(reached) + (f"; {brief}" if brief else ""),))

    def _spent(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def _state(self) -> TrainingState:
        return TrainingState(
            self.key,
            self.done,
            self.searching,
            self.rungs.lowered,
            self.finder.to_json(),
            self.before,
            self._spent(),
            self.history,
            tensors_of(self.graph, self.loop.optimizer),
        )

    def _restore(self, state: TrainingState) -> None:
        try:
            self.rungs.restore(state.lowered)
            state.restore(self.graph, self.loop.optimizer, self.path)
            self.finder.restore(state.numbers)
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.path} does not fit the model ({error}): delete it to train again") from error
        self.done, self.searching, self.seconds = state.step, state.searching, state.seconds
        self.before, self.history = state.before, [dict(row) for row in state.history]
        if not self.searching:
            self.finder.settle()

    def _key(self, kind: type[Finder]) -> str:
        """Return what stands for all that the result depends on."""
        ladders = ";".join(f"{name}={','.join(map(str, row))}" for name, row in self.ladders.items())
        limits = ";".join(f"{ceiling.model.name}<={ceiling.limit!r}" for ceiling in self.subject.ceilings)
        data = f"{self.subject.fingerprint} {training_content(self.subject.task)}"
        parts = (kind.__name__, data, ladders, limits, repr(self.how), repr(self.bits))
        return sha256("|".join(parts).encode()).hexdigest()


def _brief(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if "/" not in name)
