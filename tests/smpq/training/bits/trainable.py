"""The small network of the tests of training, as something whose bits are to be found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calib.formats.format import FP32, formats_from_text
from calib.task import Batch
from smpq.problem.costs import cost_models
from smpq.problem.groups import find_groups
from smpq.problem.policy import Space
from smpq.solve.allocate import Ceiling
from smpq.training.bits.ladder import highest, ladders_of
from smpq.training.bits.rungs import Rungs
from smpq.training.bits.train import BitSubject
from smpq.training.lsq import LearnedWeight
from smpq.training.plan import attach_plan
from tests.smpq.tunable import Task, tunable

FORMATS = "w1a8,w2a8,w3a8,w4a8,w8a8,fp32"


class Stopped(Task):
    """Training that ends in the middle of a pass, as a kill would."""

    def __init__(self, epoch: int, batch: int, passes: int = 6) -> None:
        super().__init__(passes)
        self.stop = epoch, batch

    def training(self, epoch: int) -> Iterator[Batch]:
        for index, batch in enumerate(super().training(epoch)):
            if (epoch, index) == self.stop and self.began:
                raise KeyboardInterrupt
            yield batch
        self.began = True  # the first pass counts the batches

    began = False


def space_of(formats: str = FORMATS, **others: str) -> Space:
    given = tunable(rounding="nearest")
    groups = find_groups(given.traced, given.units)
    row = formats_from_text(formats)
    return Space(groups, {g.name: formats_from_text(others[g.name]) if g.name in others else row for g in groups}, FP32)


def ceilings(space: Space, **limits: float) -> tuple[Ceiling, ...]:
    costs = cost_models(space, tunable(rounding="nearest").traced)
    return tuple(Ceiling(costs[name], limit) for name, limit in limits.items())


def subject(task: object = None, formats: str = FORMATS, **limits: float) -> BitSubject:
    given, space = tunable(rounding="nearest"), space_of(formats)
    return BitSubject(
        task or Task(),  # type: ignore[arg-type]
        given.traced,
        given.original,
        given.folded,
        space,
        ceilings(space, **(limits or {"avg_bits": 3.0})),
        given.fake,
        given.batches,
        "the fingerprint",
    )


def rungs(formats: str = FORMATS, kind: type[LearnedWeight] = LearnedWeight, **limits: float) -> Rungs:
    given, space = tunable(rounding="nearest"), space_of(formats)
    found = ceilings(space, **(limits or {"avg_bits": 3.0}))
    ladders = ladders_of(space, found)
    graph = given.graph()
    attach_plan(graph, given.fake.plan(highest(ladders).by_unit(space.groups)), kind=kind)
    return Rungs(graph, space, ladders, found)


def kept(directory: Path) -> Path:
    return directory / "training.safetensors"
