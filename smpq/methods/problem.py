"""What a method is given and what it returns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from smpq.training.settings import FineTuneSettings

if TYPE_CHECKING:
    from torch import nn

    from calib.files.storage import FileRecord
    from calib.formats.format import Format
    from calib.network.fold import Folded
    from calib.network.graph import TracedModel
    from calib.task import Batch, Task
    from smpq.problem.costs import CostModel
    from smpq.problem.policy import Policy, Space
    from smpq.quantized.quantize import FakeQuantizer
    from smpq.scoring.scores import Scores
    from smpq.solve.allocate import Ceiling, Move, Neighbourhood, Pairs
    from smpq.training.finetune import Subject
    from smpq.training.finetuned import FineTunedWeights
    from smpq.value.evaluate import Evaluator


class Watcher(Protocol):
    """Who is told how far a method is, and says when it has waited long enough."""

    def enough(self) -> bool:
        """Whether to end with what there is."""
        ...

    def say(self, text: str) -> None:
        """Print one line."""
        ...

    def warn(self, text: str) -> None:
        """Print one line that should not be missed."""
        ...

    def step(self, name: str) -> AbstractContextManager[None]:
        """Show that something of unknown length runs."""
        ...

    def bar(self, name: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Show a bar of `total` steps; the function that is handed out advances it by one."""
        ...


class Files(Protocol):
    """Where a method keeps what would take long to do again."""

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        ...

    def file(self, name: str) -> Path:
        """Return the path of a file."""
        ...

    def write(self, record: FileRecord) -> None:
        """Write a record under its name, in one step."""
        ...


@dataclass(frozen=True)
class Limits:
    """How much a method may spend.

    `evaluations` policies; 0 asks for the quickest answer. `precision`: the largest standard error that is small
    enough, as a fraction of the spread of the scores; 0 asks for all evaluations. `gain`: stop once more is expected to
    gain less, as a share of what the policy loses, or of what is negligible (`SearchProblem.negligible_loss`).
    """

    evaluations: int = 400
    precision: float = 0.0
    gain: float = 0.0


@dataclass(frozen=True)
class SearchProblem:
    """Everything that a method may ask for.

    `traced` is the float model as a graph, BatchNorm folded; `original` is the model before folding, and `folded` says
    what was folded. `costs` are those that need no measurement, by name. `ceilings` are the limits on them that the
    budget sets; there are none when only scores are asked for, or for a latency. `batches` are the calibration data,
    `judging` those of them that policies are judged on, by the value called `value_name`. `device` is where PyTorch
    computes. `fingerprint` stands for model and data. `training` is how a method that trains is to do so.
    `negligible_loss` is what a policy may lose, by the value, without anybody noticing; 0 where that is not known.
    """

    task: Task
    traced: TracedModel
    original: nn.Module
    folded: tuple[Folded, ...]
    space: Space
    costs: Mapping[str, CostModel]
    ceilings: tuple[Ceiling, ...]
    batches: Sequence[Batch]
    judging: Sequence[Batch]
    value_name: str
    limits: Limits
    seed: int
    device: str
    fingerprint: str
    progress: Watcher
    files: Files
    make_fake_quantizer: Callable[[], FakeQuantizer]
    make_evaluator: Callable[[], Evaluator]
    training: FineTuneSettings = field(default_factory=FineTuneSettings)
    negligible_loss: float = 0.0

    @cached_property
    def fake_quantizer(self) -> FakeQuantizer:
        """The calibrated network, which computes any policy; calibrates on first use."""
        return self.make_fake_quantizer()

    @cached_property
    def evaluator(self) -> Evaluator:
        """The value of policies: cached in the run's journal, parallel, incremental; calibrates on first use."""
        return self.make_evaluator()

    def subject(self, policy: Policy) -> Subject:
        """Return what `smpq.training.finetune.finetune` trains: the network under a policy."""
        from smpq.training.finetune import Subject

        plan = self.fake_quantizer.plan(policy.by_unit(self.space.groups), policy.float_joins)
        units, key = self.space.units, policy.key()
        return Subject(self.task, self.traced, units, self.original, self.folded, plan, key, self.fingerprint)


@dataclass(frozen=True)
class Objective:
    """What a method says policies are worth: the sum of the values of their moves and of their pairs of moves.

    `near`: the policy that the pairs were measured at, and how far from it they are to be trusted. `notes`: lines that
    the terminal and the report show with the scores.
    """

    linear: Scores
    pairs: Pairs = field(default_factory=dict)
    near: Neighbourhood | None = None
    notes: tuple[str, ...] = ()

    @property
    def scores(self) -> Scores:
        """All of it as the run keeps it."""
        return replace(self.linear, pairs=self.pairs, near=self.near, notes=self.notes)


@dataclass(frozen=True)
class Solution:
    """What a training method returns: a policy within the ceilings of the problem, and the weights that were trained in
    its formats, of that policy and of the problem's fingerprint. `notes` are lines that the terminal shows.
    """

    policy: Policy
    weights: FineTunedWeights
    notes: tuple[str, ...] = ()


Samples = Mapping[tuple[str, "Format"], Sequence[float]]
"""What independent samples say about each move, by group name and format; equally many for every move."""


def linear_objective(
    problem: SearchProblem,
    samples: Samples,
    *,
    estimator: str,
    value_name: str,
    evaluations: int = 0,
    random: bool = False,
    stop_reason: str = "exact",
    alone: Mapping[Move, float] | None = None,
) -> Objective:
    """Return the objective in which each move's value is the mean of its samples, and 0 for a move that is not named.

    `random`: the samples are draws of an estimator, which give a standard error; otherwise there is one of each move,
    and it is exact. `estimator` and `value_name` say in the report where the values come from, and what they are.
    `alone`: what moves change by themselves, where that is something else.
    """
    from smpq.scoring.scores import Score, Scores

    def score(group: str, chosen: Format) -> Score:
        seen = samples.get((group, chosen), (0.0,))
        value = statistics.fmean(seen)
        by_itself = (alone or {}).get((group, chosen), value)
        if not random or (group, chosen) not in samples:
            return Score(value, 0.0, 0 if random else 1, by_itself)
        return Score(value, statistics.stdev(seen) / math.sqrt(len(seen)), len(seen), by_itself, tuple(seen))

    space = problem.space
    entries = {
        group.name: {chosen: score(group.name, chosen) for chosen in space.formats[group.name]}
        for group in space.groups
    }
    walks = max(map(len, samples.values()), default=0) if random else 0
    return Objective(Scores(entries, value_name, estimator, problem.seed, evaluations, walks, stop_reason, 0.0))
